"""`python -m pipelines.campaign`."""

from pipelines.command.cli import main

if __name__ == "__main__":
    main("campaign")
