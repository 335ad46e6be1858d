"""Heads that are fitted on frozen features."""
