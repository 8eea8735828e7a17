"""How a round's updates of the shared core are combined: the mean, robust rules, differential privacy, secure sums."""
