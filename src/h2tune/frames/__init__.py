"""Frames: where A and B come from, so that numbers in the core mean the same in every model. One kind a file."""
