"""Entry points and their code: only this package reads clocks, sets seeds, chooses devices and writes to MLflow."""
