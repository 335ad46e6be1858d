"""Writing to MLflow and reading from it; no other folder calls its client."""
