"""Code that the probe entry points share."""
