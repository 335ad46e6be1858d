"""Figures drawn from numbers and images that others measured: no cohort is read here and nothing is fitted."""
