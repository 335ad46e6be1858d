"""Embeddings of a folder of CT or of a cohort as a parquet table, one row per slice, or per cube of a 3D backbone."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.encode import EncodedSlices, encode_parts
from pipelines.backbones.features import image_features
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone, tag_scale
from pipelines.ingest.ct_volumes import CtFolder, CtVolume
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.ingest.preparation import NothingReadError
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from transforms.refusal import number_of


def run_embed(config: EmbedConfig, run: Run) -> None:
    """Embed every slice, or cubes, of what can be read; files left out are counted, with the most frequent reason."""
    ensure_cohort(Path(config.source))
    loaded = open_backbone(chosen_backbone(config.backbone))
    source, out = CtFolder(Path(config.source), config.from_, config.keep_ids), Path(config.out)
    make_folder(out.parent)
    table = _Table(config, loaded)
    write_atomically(out, lambda file: table.write(source, file))
    reasons = Counter(one.reason for one in source.refused)
    run.set_tags({Tag.EMBEDDED_WITH: loaded.source, Tag.BACKBONE_SHA: loaded.sha256})
    if "opened" in loaded.record:
        run.set_tags({Tag.OPENED: "; ".join(loaded.record["opened"])})
    counts = {"volumes": table.n_volumes, "slices": table.n_slices, "refused_files": reasons.total()}
    run.log_metrics({f"embed/{name}": float(count) for name, count in counts.items()})
    tag_scale(run, loaded, np.array(table.mm_per_px))
    what, width = ("cubes" if loaded.backbone.image_depth_px else "slices"), loaded.backbone.embed_dim
    print(f"{out}: {table.n_slices} {what} of {table.n_volumes} volumes, tokens of length {width}")
    if reasons:
        reason, count = reasons.most_common(1)[0]
        print(f"left out: {number_of(reasons.total(), 'file')}, {count} because: {reason}")


def columns_of(width: int) -> pa.Schema:
    """Return the columns of a table of embeddings with features of this length; docs/tables.md says what they mean."""
    return pa.schema(
        [
            pa.field("volume_id", pa.string()),
            pa.field("patient_id", pa.string()),
            pa.field("z", pa.int32()),
            *(pa.field(f"{axis}_lps_mm", pa.float64()) for axis in "xyz"),
            pa.field("mm_per_px", pa.float64()),
            pa.field("is_replicated", pa.bool_()),
            pa.field("features", pa.list_(pa.float32(), width)),
        ]
    )


class _Table:
    """The rows of one run; volumes are written one by one, so memory holds one batch of slices."""

    def __init__(self, config: EmbedConfig, loaded: LoadedBackbone) -> None:
        self.config, self.loaded = config, loaded
        self.device = choose_device(config.device)
        self.n_volumes = self.n_slices = 0
        self.mm_per_px: list[float] = []
        width = loaded.backbone.embed_dim * (2 if config.features == "both" else 1)
        self.schema = pa.schema(
            columns_of(width),
            metadata={
                "backbone": loaded.source,
                "backbone_sha256": loaded.sha256,
                "features": config.features,
                "window": config.window,
            },
        )

    def write(self, source: CtFolder, file: BinaryIO) -> None:
        with pq.ParquetWriter(file, self.schema) as writer:
            for volume in source:
                self.n_volumes += 1
                for batch in self._batches(volume):
                    writer.write_batch(batch)
        if not self.n_slices:
            reasons = Counter(one.reason for one in source.refused).most_common(1)
            why = f"most often because: {reasons[0][0]}" if reasons else "it holds no files"
            raise NothingReadError(f"no CT series could be read in {self.config.source}; {why}")

    def _batches(self, volume: CtVolume) -> Iterator[pa.RecordBatch]:
        for part in encode_parts(volume, self.loaded, self.config, self.device):
            self.n_slices += len(part.z)
            self.mm_per_px.append(part.mm_per_px)
            yield pa.RecordBatch.from_pydict(self._columns(volume, part), schema=self.schema)

    def _columns(self, volume: CtVolume, part: EncodedSlices) -> dict[str, object]:
        count = len(part.z)
        features = image_features(part.tokens, self.config.features).numpy()
        flat = pa.array(features.ravel(), type=pa.float32())
        return {
            "volume_id": [volume.volume_id] * count,
            "patient_id": [volume.patient_id] * count,
            "z": part.z,
            **{f"{axis}_lps_mm": part.center_lps_mm[:, i] for i, axis in enumerate("xyz")},
            "mm_per_px": [part.mm_per_px] * count,
            "is_replicated": part.is_replicated,
            "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
        }
