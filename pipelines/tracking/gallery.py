"""All figures of a run on one page, `gallery.html`: MLflow's artifact pane shows it, and it opens offline.

MLflow's own grid of images prints every parameter above each picture, which is then below the edge of its card.
"""

import io
import re
import tempfile
from pathlib import Path

from PIL import Image

from pipelines.runtime.page import Block, Heading, Sentence, Slides, Table, page_html
from pipelines.tracking.description import HEAD, headline
from pipelines.tracking.names import IMAGES, Tag
from pipelines.tracking.reading import StoredRun, artifacts, fetch_artifact

PAGE = "gallery.html"
FOLDER = "figures"
_OF_A_STEP = re.compile(r"(.+)_step(\d+)")
_WIDEST_PX = 1600


def file_of(key: str, step: int) -> str:
    """Return the artifact that holds the image of a step."""
    return f"{FOLDER}/{_flat(key)}_step{step:06d}.png"


def _flat(key: str) -> str:
    return key.replace("/", "_")


def gallery(run: StoredRun) -> str | None:
    """Return the page of a run that is in the store; None if it has no figure."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [path for path in artifacts(run.run_id, FOLDER) if path.endswith(".png")]
        files = [fetch_artifact(run.run_id, path, Path(folder)) for path in paths]
        shown: dict[str, list[tuple[int, bytes]]] = {}
        for file in files:
            of_step = _OF_A_STEP.fullmatch(file.stem)
            name, step = (of_step[1], int(of_step[2])) if of_step else (file.stem, 0)
            shown.setdefault(name, []).append((step, _small(file)))
    if not shown:
        return None
    blocks: list[Block] = [Heading(1, run.tags.get(Tag.RUN_NAME, "") or run.run_id)]
    if ended := run.tags.get(Tag.ERROR) or run.tags.get(Tag.STATUS):
        blocks.append(Sentence(ended))
    if rows := headline(run.metrics):
        blocks.append(Table(HEAD, rows))
    meanings = {_flat(key): meaning for key, meaning in IMAGES.items()}
    for name in sorted(shown, key=lambda one: ([*meanings, one].index(one), one)):
        steps = sorted(shown[name])
        captions = [f"step {step}" for step, _ in steps] if name in meanings else [""] * len(steps)
        blocks.append(Heading(2, meanings.get(name, name.replace("_", " "))))
        blocks.append(Slides(name, captions, [image for _, image in steps]))
    return page_html(blocks)


def _small(file: Path) -> bytes:
    """Return a picture as WebP, at most 1600 pixels wide: a page of a hundred stays a few megabytes."""
    content = io.BytesIO()
    with Image.open(file) as image:
        image.thumbnail((_WIDEST_PX, 10 * _WIDEST_PX))
        image.convert("RGB").save(content, format="WEBP", quality=85)
    return content.getvalue()
