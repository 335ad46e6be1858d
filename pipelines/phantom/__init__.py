"""Synthetic cohorts."""
