"""Entry point `pretrain`: a cohort to a self-supervised backbone, with a verdict on whether it learned."""

from pipelines.command.cli import main
from pipelines.training.config import PretrainConfig as PretrainConfig

if __name__ == "__main__":
    main("pretrain")
