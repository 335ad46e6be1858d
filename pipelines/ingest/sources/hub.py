"""The Hub's PNG form of LIDC-IDRI as a source: fetched with huggingface_hub, then read as PNG."""

from pathlib import Path

from pipelines.ingest.sources.found import SourceError

DEFAULT_DATASET = "timlawrenz/lidc-idri-png"


def fetch_from_hub(dataset: str) -> Path:
    """Download a data set of the Hub, or take it from the local cache, and return its folder.

    Args:
        dataset: "owner/name"; empty takes the PNG form of LIDC-IDRI.

    Raises:
        SourceError: If it cannot be fetched: no such data set, no access, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = dataset or DEFAULT_DATASET
    try:
        return Path(snapshot_download(repo_id=name, repo_type="dataset"))
    except HFValidationError:
        raise SourceError(f"source={name} is no data set of the Hub; write owner/name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"the data set {name} cannot be fetched from the Hub ({type(error).__name__}): check its name, your "
            "access and the network; finished files are kept, so that the same command goes on"
        ) from None
