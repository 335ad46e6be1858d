"""A page of headings, sentences, tables and pictures, written as Markdown and as HTML that opens offline."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:1rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0;font-size:13px;display:block;overflow-x:auto}
th,td{border:1px solid #d0d0d0;padding:.3rem .6rem;text-align:left;vertical-align:top}
th{background:#f4f4f4}img{max-width:100%}figure{margin:.6rem 0}input{width:20rem}
h1,h2,h3{margin:.5rem 0;line-height:1.2}
.supported{background:#e3f4e3}.not-supported{background:#fbe6e2}.not-testable-here{background:#f1f1f1}
.note{border-left:4px solid #c89b00;padding:.3rem .8rem;background:#fff9e3}"""

_NOTHING = "Nothing yet."

VERDICTS = ("supported", "not supported", "not testable here")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A paragraph; a note is highlighted."""

    text: str
    is_note: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head, all with the same number of cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A figure; in HTML it is part of the page, in Markdown its title stands for it."""

    title: str
    figure: Figure

    def source(self) -> str:
        """Return the figure as the source of an HTML image."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=120)
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True, slots=True)
class Slides:
    """Pictures of one thing in order, as WebP; with several, a slider chooses which is shown, the last at first."""

    title: str
    captions: Sequence[str]
    images: Sequence[bytes]


Block = Heading | Sentence | Table | Picture | Slides


def markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {_plain(text)}")
            case Sentence(text, is_note):
                parts.append(("> " if is_note else "") + _plain(text))
            case Slides(title, _, _):
                parts.append(f"(figures in the HTML page: {_plain(title)})")
            case Picture(title, _):
                parts.append(f"(figure in the HTML page: {_plain(title)})")
            case Table(_, []):
                parts.append(_NOTHING)
            case Table(head, rows):
                lines = [head, ["---"] * len(head), *rows]
                parts.append("\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def page_html(blocks: Sequence[Block]) -> str:
    """Return the page as one self-contained HTML file."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = []
    for block in blocks:
        match block:
            case Heading(level, text):
                body.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Sentence(text, is_note):
                body.append(f"<p{' class=note' if is_note else ''}>{_code(html.escape(text))}</p>")
            case Picture(title, _):
                body.append(f'<img alt="{html.escape(title)}" src="{block.source()}">')
            case Slides():
                body.append(_slides(block))
            case Table(_, []):
                body.append(f"<p>{_NOTHING}</p>")
            case Table(head, rows):
                body.append("<table><thead><tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head))
                body.append("</tr></thead><tbody>")
                body += ["<tr>" + "".join(_td(c) for c in row) + "</tr>" for row in rows]
                body.append("</tbody></table>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


_SLIDE = (
    "var f=this.parentNode;f.querySelectorAll('img').forEach((one,i)=>one.hidden=i!=this.value);"
    "f.querySelector('output').value=f.querySelectorAll('img')[this.value].alt"
)


def _slides(block: Slides) -> str:
    last = len(block.images) - 1
    shown = []
    for number, (caption, image) in enumerate(zip(block.captions, block.images, strict=True)):
        source = f"data:image/webp;base64,{base64.b64encode(image).decode()}"
        hidden = "" if number == last else " hidden"
        shown.append(f'<img alt="{html.escape(caption or block.title)}" src="{source}"{hidden}>')
    slider = (
        f'<input type="range" min="0" max="{last}" value="{last}" oninput="{_SLIDE}" aria-label="step">'
        f" <output>{html.escape(block.captions[last])}</output><br>"
    )
    return f"<figure>{slider if last else ''}{''.join(shown)}</figure>"


def _td(text: str) -> str:
    kind = next((verdict for verdict in VERDICTS if text == verdict), "")
    return f"<td{f' class={kind.replace(chr(32), chr(45))}' if kind else ''}>{_code(html.escape(text))}</td>"


def _code(escaped: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escaped)


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n", " ")
