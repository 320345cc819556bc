"""The report page: one HTML file that holds its pictures and opens without a server."""

from __future__ import annotations

import base64
import html
import io
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from report.style import Drawn

LARGEST_PNG = 1 << 20  # bytes; larger pictures are of tiles, and are embedded as JPEG
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Entry:
    """One figure on the page: its name, heading of its section, and what was drawn or is missing.

    Attributes:
        name: as in `--figure`; also the stem of its files.
        section: heading under which it stands.
        drawn: the figure, or None when a result is missing.
        missing: which result is missing, when `drawn` is None.
        png: the written picture, embedded in the page.
        files: written files, linked relative to the page.
    """

    name: str
    section: str
    drawn: Drawn | None
    missing: str
    png: Path | None
    files: Sequence[str]


def page_html(
    title: str, facts: str, note: str, entries: Sequence[Entry], times: pd.DataFrame
) -> str:
    """Return the page.

    Args:
        title: of the page.
        facts: one line below the title: versions, date.
        note: a remark above everything else; may be empty.
        entries: figures in their order.
        times: columns step, seconds; may be empty.
    """
    present = [entry for entry in entries if entry.drawn]
    missing = [entry for entry in entries if not entry.drawn]
    headlines = [
        f'<li><a href="#{entry.name}">{html.escape(entry.drawn.headline)}</a></li>'
        for entry in present
        if entry.drawn and entry.drawn.headline
    ]
    contents, sections = [], []
    for section in dict.fromkeys(entry.section for entry in present):
        members = [entry for entry in present if entry.section == section]
        links = ", ".join(
            f'<a href="#{entry.name}">{html.escape(entry.drawn.title)}</a>'
            for entry in members
            if entry.drawn
        )
        contents.append(f"<li>{html.escape(section)}: {links}</li>")
        sections.append(f"<h2>{html.escape(section)}</h2>")
        sections += [_figure(entry) for entry in members]
    if missing:
        contents.append('<li><a href="#missing">Not there yet</a></li>')
        items = "\n".join(
            f"<li><b>{entry.name}</b>: {html.escape(entry.missing)}</li>" for entry in missing
        )
        sections.append(
            f'<h2 id="missing">Not there yet</h2>\n<ul class="missing">\n{items}\n</ul>'
        )
    if len(times):
        contents.append('<li><a href="#times">Run times</a></li>')
        shown = pd.DataFrame({"step": times.step, "time": times.seconds.map(duration_text)})
        total = duration_text(times.seconds.sum())
        sections.append(f'<h2 id="times">Run times</h2>\n<p>Total {total}.</p>\n{_table(shown)}')
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts=html.escape(facts),
        note=f'<p class="note">{html.escape(note)}</p>' if note else "",
        headlines=f'<ul class="headlines">\n{chr(10).join(headlines)}\n</ul>' if headlines else "",
        contents="\n".join(contents),
        sections="\n".join(sections),
    )


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figure(entry: Entry) -> str:
    drawn, png = entry.drawn, entry.png
    if drawn is None or png is None:
        raise ValueError(f"{entry.name} was not drawn")
    links = " ".join(f'<a href="{name}">{name.rsplit(".")[-1].upper()}</a>' for name in entry.files)
    table = _table(drawn.table) if drawn.table is not None else ""
    return (
        f'<figure id="{entry.name}">\n<h3>{html.escape(drawn.title)}</h3>\n'
        f'<div class="wide"><img alt="{html.escape(drawn.title)}" src="{_data_uri(png)}"></div>\n'
        f"<figcaption>{html.escape(drawn.caption)}"
        f' <span class="files">{links}</span></figcaption>\n{table}</figure>'
    )


def _data_uri(png: Path) -> str:
    content, kind = png.read_bytes(), "png"
    if len(content) > LARGEST_PNG:
        with Image.open(png) as image, io.BytesIO() as buffer:
            image.convert("RGB").save(buffer, format="JPEG", quality=88)
            content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _table(frame: pd.DataFrame) -> str:
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name]) for name in frame}

    def cell(tag: str, name: str, value: object) -> str:
        if isinstance(value, float):
            value = "" if value != value else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
        css = ' class="number"' if numeric[name] else ""
        return f"<{tag}{css}>{html.escape(str(value))}</{tag}>"

    head = "".join(cell("th", name, str(name).replace("_", " ")) for name in frame)
    rows = [
        "".join(cell("td", name, value) for name, value in zip(frame, row, strict=True))
        for row in frame.itertuples(index=False)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n'
