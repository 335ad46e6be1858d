"""Files, locks, processes, signals, progress and paths, used by every other folder."""
