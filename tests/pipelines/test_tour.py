"""docs/tour.ipynb, the notebook: its cells run one after another in this process."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

TOUR = json.loads((Path(__file__).parents[2] / "docs" / "tour.ipynb").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    own_store: Path, own_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    shown: dict[str, Any] = {}
    for cell in TOUR["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), shown)
    assert Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")).parent == shown["folder"]
    assert shown["crops"].shape == (6, 3, 64, 64)
    assert 0 <= float(shown["crops"].min()) < float(shown["crops"].max()) <= 1
    assert shown["table"]["patient_id"].nunique() == 30
    runs = shown["mlflow"].search_runs(search_all_experiments=True)
    assert sorted(runs["tags.dinox.entry_point"]) == ["embed", "prepare", "pretrain", "probe_malignancy"]
    assert set(runs["status"]) == {"FINISHED"}
    # What was embedded is what was trained on: no alarm of scale.
    assert runs.set_index("tags.dinox.entry_point")["tags.dinox.scale"].isna()["embed"]


def test_its_outputs_show_pictures_and_no_folder_of_anybody() -> None:
    outputs = [output for cell in TOUR["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = json.dumps(outputs)
    assert "/home/" not in text
    assert "/work" not in text
    assert len(text) < 300_000
