"""Entry point `finetune`: a backbone trained on the labels, in the folds of the probes, beside itself frozen."""

from pipelines.command.cli import main
from pipelines.finetuning.config import FinetuneConfig as FinetuneConfig

if __name__ == "__main__":
    main("finetune")
