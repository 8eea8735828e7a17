"""Vertical federated learning: parties hold other columns of partly the same people.

A reconstruction of Proto-EVFL (arXiv 2507.22488): no code of the paper is public, and no formula of it could be read.
Every formula here was derived from its abstract and from the published methods that it names.
"""
