"""Federated methods, one per file; `h2tune.methods.registry` finds them by name."""
