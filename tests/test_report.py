from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from brainfast.errors import BrainfastError
from brainfast.report import Photograph, Table, build

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, texts, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def figure():
    one = Figure(figsize=(4, 2))
    one.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0, 1], [1, 0])
    return one


def photograph():
    return np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)


def read(path):
    text = path.read_text()
    return text, Page(text)


def test_pictures_are_inside_the_page(tmp_path, figure):
    png = tmp_path / "map.png"
    figure.savefig(png)
    path = build(
        tmp_path / "report.html",
        title="Run",
        figures=[(png, "from a file"), (figure, "from matplotlib")],
        photographs=[Photograph(photograph(), "a cat", figure), (photograph(), "alone")],
    )
    text, page = read(path)
    pictures = page.all("img")
    assert len(pictures) == 5
    assert [image["alt"] for image in pictures[:2]] == ["from a file", "from matplotlib"]
    assert base64.b64encode(png.read_bytes()).decode() in text
    for image in pictures:
        kind, data = image["src"].split(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
            assert max(decoded.size) >= 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.png", "report.html"]


def test_nothing_is_fetched_and_no_script_runs(tmp_path, figure):
    text, page = read(build(tmp_path / "r.html", title="Run", figures=[(figure, "one")]))
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag in ("script", "link", "iframe", "a"):
        assert page.all(tag) == []
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text


def test_hostile_text_is_only_text(tmp_path, figure):
    hostile = "\"><script>alert('x')</script><img src=x onerror=alert(1)> & </title></style>"
    page = read(
        build(
            tmp_path / "r.html",
            title=hostile,
            subtitle=hostile,
            summary=[(hostile, hostile)],
            figures=[(figure, hostile)],
            photographs=[Photograph(photograph(), hostile, figure)],
            tables=[Table(hostile, [hostile], [[hostile]], hostile)],
            notes=[hostile],
        )
    )[1]
    assert page.all("script") == []
    assert len(page.all("img")) == 3
    assert page.all("img")[0]["alt"] == hostile
    assert all("onerror" not in image for image in page.all("img"))
    assert sum(hostile in text for text in page.texts) == 12


def test_numbers_read_well(tmp_path):
    rows = [["a", 0.61234, 12345], ["b", float("nan"), -3], ["c", None, np.int64(7)]]
    rows += [["d", 2.1e-6, 0], ["e", 6912.4, True], ["f", np.float32(12.345), 1]]
    text, page = read(
        build(
            tmp_path / "r.html",
            title="Run",
            summary=[("R2", 0.5), ("speed", "15x")],
            tables=[("Scores", ["name", "value", "count"], rows)],
        )
    )
    for shown in ("0.612", "12,345", "6,912", "12.3", "\N{MINUS SIGN}3", "0.500", "15x", "True"):
        assert shown in page.texts
    assert page.texts.count("\N{EN DASH}") == 2
    assert "2.1 \N{MULTIPLICATION SIGN} 10<sup>\N{MINUS SIGN}6</sup>" in text
    kinds = [cell.get("class") for cell in page.all("th") if cell.get("scope") == "col"]
    assert kinds == [None, "number", "number"]
    assert sum(cell.get("scope") == "row" for cell in page.all("th")) == len(rows)


def test_narrow_figures_pair_up_and_a_lone_one_takes_the_row(tmp_path, figure):
    square = Figure(figsize=(2, 2))
    figures = [(square, "1"), (figure, "2"), (square, "3"), (square, "4")]
    page = read(build(tmp_path / "r.html", title="Run", figures=figures))[1]
    assert [f["class"] for f in page.all("figure")] == ["wide tall", "wide", "", ""]


def test_an_empty_report_is_a_page(tmp_path):
    page = read(build(tmp_path / "r.html", title="Run"))[1]
    assert page.all("h1")
    assert page.all("section") == []
    assert page.all("html") == [{"lang": "en"}]


def test_bad_input_leaves_nothing(tmp_path):
    path = tmp_path / "r.html"
    with pytest.raises(BrainfastError, match="check the path"):
        build(path, title="Run", figures=[(tmp_path / "missing.png", "")])
    text = tmp_path / "not.png"
    text.write_text("<svg onload=alert(1)>")
    with pytest.raises(BrainfastError, match="PNG or JPEG"):
        build(path, title="Run", figures=[(text, "")])
    with pytest.raises(BrainfastError, match="2 cells"):
        build(path, title="Run", tables=[("t", ["a", "b"], [["x"]])])
    with pytest.raises(BrainfastError, match="one image"):
        build(path, title="Run", photographs=[(np.zeros((2, 8, 8, 3), dtype=np.uint8), "")])
    assert not path.exists()
