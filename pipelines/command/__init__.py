"""From a command line to a configuration and an exit code."""
