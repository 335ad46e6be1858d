"""Entry point `probe_aggregation`: does the third dimension add information, and which pooling keeps it?"""

from pipelines.command.cli import main
from pipelines.probing.config import AggregationConfig as AggregationConfig

if __name__ == "__main__":
    main("probe_aggregation")
