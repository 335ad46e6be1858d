"""From MLflow runs to one page: the article's tables beside ours; `run.py` is the entry point."""
