"""Local training: batches, updates of parameter groups, scoring."""
