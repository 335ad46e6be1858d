"""Heartbeat of an arm of a campaign; this module is imported before MLflow."""

HOURS = "campaign/hours"
"""Metric of the arm's run: age of the attempt that is its step, in hours."""
HEARTBEAT_S = 20.0
"""Seconds between two heartbeats; the hours of a killed arm are known to this precision."""
