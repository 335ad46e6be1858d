"""Campaigns: a study as data, run arm by arm within a budget; `run.py` is the entry point."""
