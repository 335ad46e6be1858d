"""Entry point `probe_representation`: geometry of the features, beside that of random weights."""

from pipelines.command.cli import main
from pipelines.probing.config import RepresentationConfig as RepresentationConfig

if __name__ == "__main__":
    main("probe_representation")
