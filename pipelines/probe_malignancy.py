"""Entry point `probe_malignancy`: frozen features of nodules beside baselines that need no backbone."""

from pipelines.command.cli import main
from pipelines.probing.config import ProbeConfig as ProbeConfig

if __name__ == "__main__":
    main("probe_malignancy")
