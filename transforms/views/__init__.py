"""Random views of slice triplets."""
