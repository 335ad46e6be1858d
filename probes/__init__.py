"""Features and labels in, fitted probes and numbers with intervals out; no disk, no MLflow, no CT reading."""
