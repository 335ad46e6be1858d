"""The pages of the documentation: each is in the site's navigation, and each link between them leads somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def leaves(tree: Any) -> Iterator[str]:
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, str):
            yield part
        else:
            yield from leaves(part)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(leaves(site["nav"]))
    assert sorted(listed) == sorted(PAGES)
    assert site["strict"] is True


def test_links_between_pages_lead_to_pages() -> None:
    found = 0
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (DOCS / page).parent.joinpath(target).is_file(), f"{page} links to {target}"
                found += 1
    assert found > 10


def test_files_that_pages_name_are_there() -> None:
    """Such as `pipelines/tracking/names.py`: a page that names a file that was moved sends its reader astray."""
    root = DOCS.parent
    dated = {"lab_log.md"} | {page for page in PAGES if page.startswith("decisions/")}  # true of their day
    for page in PAGES - dated:
        text = (DOCS / page).read_text(encoding="utf-8")
        for name in re.findall(
            r"`((?:pipelines|probes|models|transforms|tests|docs)/[\w/]+\.(?:py|md))`", text
        ):
            if "NAME" not in name:
                assert (root / name).is_file(), f"{page} names {name}"
