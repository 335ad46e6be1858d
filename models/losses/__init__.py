"""One objective per file, and the named weighted sum that the trainer minimizes."""
