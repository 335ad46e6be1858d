"""Entry point `nodules`: the nodules of a cohort under every label rule, and the baselines that need no network."""

from pipelines.command.cli import main
from pipelines.nodule.config import NodulesConfig as NodulesConfig

if __name__ == "__main__":
    main("nodules")
