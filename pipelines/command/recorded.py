"""The configuration of a run as its store holds it."""

import tempfile
from pathlib import Path

import yaml

from pipelines.command.config import flatten
from pipelines.tracking.changes import changes_of, values_over_time
from pipelines.tracking.old_names import current_keys
from pipelines.tracking.reading import StoredRun, artifacts, fetch_artifact

CONFIGURATION = "config.yaml"


def whole_configuration(run: StoredRun) -> dict[str, str]:
    """Return the whole configuration of a run as text, by dotted key.

    Older runs hold all of it in their parameters, later ones in the artifact `config.yaml`. What was changed on resume
    has all of its values, so that it equals neither.
    """
    changed = values_over_time(changes_of(run.tags))
    if run.is_whole or CONFIGURATION not in artifacts(run.run_id):
        return run.params | changed
    with tempfile.TemporaryDirectory() as folder:
        text = fetch_artifact(run.run_id, CONFIGURATION, Path(folder)).read_text(encoding="utf-8")
    first = {key: str(one) for key, one in flatten(current_keys(yaml.safe_load(text))).items()}
    return run.params | first | changed
