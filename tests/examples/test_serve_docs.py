"""The tables of docs/serve.md say what the server's own structs say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("msgspec", reason="brainfast[serve]")
pytest.importorskip("zmq", reason="brainfast[serve]")

from brainfast.serve import wire
from brainfast.serve.limits import Limits
from brainfast.serve.refusal import HTTP_STATUS
from brainfast.serve.requests import OpenSession
from example_world import EXAMPLES

TEXT = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()


def table(title: str) -> Iterator[list[str]]:
    """The rows of the first table below a heading, without its head; no backticks."""
    _, _, rest = TEXT.partition(f" {title}\n")
    rows = re.search(r"(^\|.*\n)+", rest, re.MULTILINE)
    assert rows is not None, title
    for line in rows.group().splitlines()[2:]:
        yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def as_number(text: str) -> float:
    units = {"MiB": 1 << 20, "million": 1_000_000}
    number, _, unit = text.partition(" ")
    return float(number) * units.get(unit, 1)


def test_limits() -> None:
    told = {row[0]: as_number(row[1]) for row in table("Limits")}
    assert told == asdict(Limits())


def test_codes() -> None:
    assert {row[0]: int(row[1]) for row in table("Errors")} == HTTP_STATUS


def test_operations() -> None:
    told = {row[1] for row in table("What can be asked")} - {""}
    requests = wire.AnyRequest.__args__
    assert told == {request.__struct_config__.tag for request in requests}


def test_fields_of_a_session() -> None:
    told: dict[str, str] = {}
    for names, defaults, _ in table("To open a session"):
        told |= dict(zip(names.split(", "), defaults.split(", "), strict=False))
    told["objective"] = "null"
    plain = OpenSession()
    assert {name: json.loads(text) for name, text in told.items()} == {
        name: getattr(plain, name) for name in OpenSession.__struct_fields__
    }


def test_fields_of_a_session_in_matlab() -> None:
    text = (EXAMPLES / "matlab" / "brainfast_open.m").read_text()
    listed = re.search(r"docs/serve\.md: ([^.]*)\.", text.replace("%", ""))
    assert listed is not None
    assert set(re.split(r",\s+", listed[1])) == set(OpenSession.__struct_fields__)
