"""One HTML page that holds a run: key numbers, maps, photographs, tables; nothing outside it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .errors import BrainfastError
from .files import file_size, write_bytes
from .images import as_images

Picture: TypeAlias = Figure | str | Path

FIGURE_DPI = 160
CARD_DPI = 100
LARGEST_PHOTOGRAPH = 480  # pixels along the longer side
WIDE = 1.35  # width over height from which a figure takes the whole page's width
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}

# Nothing may be fetched and no script may run, whatever a caption holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { --ink: #1d2129; --soft: #596273; --line: #dfe3ea; --page: #f5f6f8; --card: #ffffff;
  --accent: #4a5bd4; color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans",
    sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
header { border-top: 5px solid;
  border-image: linear-gradient(90deg, #6a5cff, #2f8bff, #12c2e0, #1fcf8a, #93d83c, #f0dc2e,
    #ff9a2b, #f8503f, #e83a9a) 1; padding-top: 1.4rem; }
h1 { font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0;
  overflow-wrap: anywhere; }
.subtitle { color: var(--soft); font-size: 1.1rem; max-width: 46rem; margin: 0.6rem 0 0; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 3rem 0 1rem; }
dl.key { display: grid; grid-template-columns: repeat(var(--columns), 1fr); margin: 2rem 0 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
dl.key div { box-shadow: 0 0 0 0.5px var(--line); padding: 0.9rem 1.1rem; display: flex;
  flex-direction: column-reverse; justify-content: flex-end; }
dl.key dt { color: var(--soft); font-size: 0.82rem; line-height: 1.3; }
dl.key dd { margin: 0 0 0.15rem; font-size: 1.45rem; font-weight: 650; line-height: 1.2;
  letter-spacing: -0.01em; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; background: #fff; }
figure.wide > .frame > img { max-width: 960px; margin: 0 auto; }
figure.tall > .frame > img { max-width: 720px; }
.frame { background: #fff; padding: 0.8rem; }
figcaption { padding: 0.8rem 1.1rem 0.9rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.9rem; line-height: 1.45; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.photographs { display: grid; grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr));
  gap: 1.5rem; align-items: start; }
.pair { display: grid; grid-template-columns: 2fr 3fr; align-items: center; background: #fff; }
.pair > :only-child { grid-column: 1 / -1; }
.pair .photograph { padding: 0.8rem 0 0.8rem 0.8rem; }
.pair > :only-child.photograph { padding: 0.8rem; }
.photograph img { border-radius: 5px; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; margin: 0 0 1.5rem; break-inside: avoid; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; padding: 0.9rem 1.1rem 0.5rem; }
th, td { padding: 0.38rem 1.1rem; text-align: left; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 550; font-size: 0.82rem;
  border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 550; }
tbody tr + tr > * { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent); }
.number { text-align: right; }
sup { line-height: 0; font-size: 0.75em; }
.note { color: var(--soft); font-size: 0.85rem; margin: 0; padding: 0.6rem 1.1rem 0.8rem;
  border-top: 1px solid var(--line); }
ul.notes { color: var(--soft); font-size: 0.92rem; padding-left: 1.2rem; max-width: 52rem; }
ul.notes li { margin: 0.35rem 0; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  dl.key { grid-template-columns: 1fr 1fr; }
  .figures { grid-template-columns: 1fr; }
  .photographs { grid-template-columns: 1fr; }
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9ebf0; --soft: #a2abba; --line: #313744; --page: #14171d; --card: #1c2028; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #ccc; --page: #fff; --card: #fff; }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 1.5rem; }
  .figures { grid-template-columns: 1fr 1fr; }
}
"""


class Table(NamedTuple):
    """A table with a title; the first column names the rows; `note` stands below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


class Photograph(NamedTuple):
    """A photograph (anything that `as_images` takes), its caption, and a figure beside it."""

    image: Any
    caption: str
    figure: Picture | None = None


def build(
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    summary: Sequence[tuple[str, object]] = (),
    figures: Sequence[tuple[Picture, str]] = (),
    photographs: Sequence[Photograph | tuple[Any, ...]] = (),
    tables: Sequence[Table | tuple[Any, ...]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page: no script, no request, pictures as data URIs.

    summary: (label, value), the numbers to read first
    figures: (matplotlib figure or PNG or JPEG file, caption), numbered in order
    photographs, tables: as `Photograph` and `Table`
    Numbers are shown with three significant digits, NaN as a dash; all text is escaped.

    Raises BrainfastError for a picture that is missing or is none, and a row of another length.
    """
    sections = [
        _header(title, subtitle, summary),
        _section("Maps", "figures", _figures(figures)),
        _section(
            "Photographs", "photographs", [_photograph(Photograph(*one)) for one in photographs]
        ),
        _section("Numbers", "tables", [_table(Table(*one)) for one in tables]),
        _notes(notes),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""
    write_bytes(path, page.encode())
    return Path(path)


def _header(title: str, subtitle: str, summary: Sequence[tuple[str, object]]) -> str:
    below = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    items = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in summary
    )
    columns = math.ceil(len(summary) / math.ceil(len(summary) / 5)) if summary else 0
    key = f'<dl class="key" style="--columns: {columns}">{items}</dl>' if items else ""
    return f"<header><h1>{escape(title)}</h1>{below}</header>{key}"


def _section(heading: str, kind: str, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    return f'<section><h2>{heading}</h2><div class="{kind}">{"".join(parts)}</div></section>'


def _figures(figures: Sequence[tuple[Picture, str]]) -> list[str]:
    pictures = [_embed(picture, FIGURE_DPI) for picture, _ in figures]
    shapes = ["wide" if aspect > WIDE else "" for _, aspect in pictures]
    shapes = _fill_rows(shapes)
    return [
        f'<figure class="{shape}"><div class="frame">{_img(data, caption)}</div>'
        f"<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption></figure>"
        for number, ((data, _), shape, (_, caption)) in enumerate(
            zip(pictures, shapes, figures, strict=True), start=1
        )
    ]


def _fill_rows(shapes: Sequence[str]) -> list[str]:
    """Narrow figures stand in pairs; the one that has no partner is given its own row."""
    filled, start = list(shapes), 0
    for end in range(len(filled) + 1):
        if end == len(filled) or filled[end] == "wide":
            if (end - start) % 2:
                filled[start] = "wide tall"
            start = end + 1
    return filled


def _photograph(one: Photograph) -> str:
    images = as_images(one.image, "photograph")
    if len(images) != 1:
        raise BrainfastError("photograph", expected="one image", got=f"{len(images)}")
    photograph = Image.fromarray(images[0])
    photograph.thumbnail((LARGEST_PHOTOGRAPH, LARGEST_PHOTOGRAPH))
    stream = io.BytesIO()
    photograph.save(stream, "JPEG", quality=90)
    image = _img(_data_uri(stream.getvalue(), "image/jpeg"), one.caption)
    beside = ""
    if one.figure is not None:
        uri, _ = _embed(one.figure, CARD_DPI)
        beside = f'<div class="frame">{_img(uri, f"Brain map: {one.caption}")}</div>'
    return (
        f'<figure><div class="pair"><div class="photograph">{image}</div>{beside}</div>'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise BrainfastError(
                f"table {table.title}",
                expected=f"{len(table.columns)} cells a row",
                got=f"{len(row)}",
            )
    numeric = [
        any(_is_number(cell) for cell in column) and all(not isinstance(c, str) for c in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.columns)
    kinds = [' class="number"' if number else "" for number in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for name, kind in zip(table.columns, kinds, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="table"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}</div>"
    )


def _cells(row: Sequence[object], kinds: Sequence[str]) -> Iterable[str]:
    cells = [f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)]
    if row:
        cells[0] = f'<th scope="row"{kinds[0]}>{_text(row[0])}</th>'
    return "".join(cells)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section><h2>Notes</h2><ul class="notes">{items}</ul></section>' if items else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _text(value: object) -> str:
    """Escaped text of a cell: three significant digits, thousands apart, a dash for nothing."""
    if value is None or (_is_number(value) and math.isnan(float(value))):  # type: ignore[arg-type]
        return "\N{EN DASH}"
    if isinstance(value, float | np.floating):
        return _real(float(value)).replace("-", "\N{MINUS SIGN}")
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
    return escape(str(value))


def _real(number: float) -> str:
    size = abs(number)
    if size == 0 or 1e-3 <= size < 1:
        return f"{number:.3f}"
    if 1 <= size < 1e7:
        return f"{number:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
    if math.isinf(number):
        return "\N{INFINITY}" if number > 0 else "-\N{INFINITY}"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa} \N{MULTIPLICATION SIGN} 10<sup>{int(exponent)}</sup>"


def _img(uri: str, alt: str) -> str:
    return f'<img src="{uri}" alt="{escape(alt, quote=True)}">'


def _embed(picture: Picture, dpi: int) -> tuple[str, float]:
    """A data URI of a figure or file, and its width over its height."""
    if isinstance(picture, Figure):
        stream = io.BytesIO()
        picture.savefig(stream, format="png", dpi=dpi)
        data = stream.getvalue()
    else:
        file_size(picture)
        data = Path(picture).read_bytes()
    kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        raise BrainfastError(
            str(picture), expected="a PNG or JPEG picture, or a figure", got="another kind of file"
        )
    with Image.open(io.BytesIO(data)) as image:
        aspect = image.width / image.height
    return _data_uri(data, kind), aspect


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
