"""`python -m pipelines.report`."""

from pipelines.command.cli import main

if __name__ == "__main__":
    main("report")
