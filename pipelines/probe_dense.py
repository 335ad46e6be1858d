"""Entry point `probe_dense`: do patch tokens show where the nodule is?"""

from pipelines.command.cli import main
from pipelines.probing.config import DenseConfig as DenseConfig

if __name__ == "__main__":
    main("probe_dense")
