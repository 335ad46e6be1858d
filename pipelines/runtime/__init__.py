"""Files, locks, processes, signals, progress and paths: what every other folder stands on."""
