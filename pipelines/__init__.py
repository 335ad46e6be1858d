"""Entry points: the only room with a clock, a seed, a device, a process group and MLflow."""
