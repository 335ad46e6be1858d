"""Backbones: open, save, encode, describe."""
