"""Writing to MLflow and reading from it; no other folder calls its client."""

import os

# MLflow reports its use to its makers unless it is told not to, and asks once, when it is imported. What a hospital
# runs is told to nobody; MLFLOW_DISABLE_TELEMETRY=false in the environment allows it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
