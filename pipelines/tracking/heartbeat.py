"""How an arm of a campaign says that it lives; imported before MLflow is."""

HOURS = "campaign/hours"
"""Metric of the arm's run: age of the attempt that is its step, in hours."""
HEARTBEAT_S = 20.0
"""How often an arm says that it lives; what a killed arm used is known to this."""
