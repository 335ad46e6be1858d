"""Entry point `probe_retrieval`: does a second view of a held-out slice find the first among thousands?"""

from pipelines.command.cli import main
from pipelines.probing.config import RetrievalConfig as RetrievalConfig

if __name__ == "__main__":
    main("probe_retrieval")
