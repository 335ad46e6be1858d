"""Features and labels in, fitted probes and numbers out. No CT reading, no MLflow, no disk."""
