"""Pretraining: configuration, loop, watch, evaluation, checkpoints."""
