"""One objective a file, and the named weighted sum that the trainer minimizes."""
