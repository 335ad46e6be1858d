"""Proposers suggest new arms from the results so far; they cannot change the search space or the budget."""
