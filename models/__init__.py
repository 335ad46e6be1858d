"""Tensors in, tensors out: backbones, heads, losses, aggregators. No disk, no MLflow."""
