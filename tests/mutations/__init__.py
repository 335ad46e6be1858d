"""Inputs changed at random, read in forked processes; `python -m tests.mutations --help`, docs/reliability.md."""
