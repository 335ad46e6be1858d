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


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The anchors of the headings of a page, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", one)).strip().lower() for one in headings]
    return {re.sub(r"[-\s]+", "-", one) for one in plain}


def test_links_of_pages_and_their_anchors_lead_somewhere() -> None:
    found = anchors = 0
    root = DOCS.parent
    pages = [DOCS / page for page in PAGES] + sorted(root.glob("*.md"))
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)", prose_of(page)):
            if target.startswith(("http", "mailto:")):
                continue
            leads_to = page.parent / target if target else page
            assert leads_to.is_file(), f"{page.name} links to {target}"
            if anchor and leads_to.suffix == ".md":
                assert anchor in anchors_of(leads_to), f"{page.name} links to {target}#{anchor}"
                anchors += 1
            found += 1
    assert found > 10
    assert anchors > 1


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
