"""`python -m pipelines.audit`."""

from pipelines.command.cli import main

if __name__ == "__main__":
    main("audit")
