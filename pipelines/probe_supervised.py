"""Entry point `probe_supervised`: networks trained on the labels themselves, in the folds of the other probes."""

from pipelines.command.cli import main
from pipelines.probing.config import SupervisedConfig as SupervisedConfig

if __name__ == "__main__":
    main("probe_supervised")
