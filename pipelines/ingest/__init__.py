"""CT in: sources, nodule tables, refusals."""
