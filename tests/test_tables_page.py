"""docs/tables.md names every column of every table, in order, with its type."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.backbones.embedding import columns_of
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, SERIES

PAGE = (Path(__file__).parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")


def said(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"fixed list of {kind.value_type}"
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("`series.parquet`", SERIES),
        ("`annotations.parquet`", ANNOTATIONS),
        ("`nodules.parquet`", NODULES),
        ("`refused.parquet`", REFUSED),
        ("Embeddings", columns_of(8)),
    ],
)
def test_every_column_stands_on_the_page_with_its_type(heading: str, schema: pa.Schema) -> None:
    section = PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert [(name, kind) for name, kind, _ in rows] == [(one.name, said(one.type)) for one in schema]
