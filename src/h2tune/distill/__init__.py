"""LaDa: a large model and small ones teach each other to reason, on public questions (Guo et al., arXiv 2602.18749)."""
