"""What the probe entry points share."""
