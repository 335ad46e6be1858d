"""Vectors of nodules that do not come from a 2D backbone: encoders of HU cubes, and tables from elsewhere."""
