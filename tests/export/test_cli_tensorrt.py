"""The options of `brainfast export` that are TensorRT's alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from brainfast.cli import app
from brainfast.errors import BrainfastError
from brainfast.export import tensorrt
from brainfast.export.onnx import Exported


@pytest.fixture
def given(monkeypatch):
    """The options that reach the exporter."""
    found = {}

    def export(model, path, **options):
        found.update(options, path=path)
        return Exported(path, None, ())

    monkeypatch.setattr(tensorrt, "export_tensorrt", export)
    return found


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--quiet"])


def test_they_reach_the_exporter(given, one, tmp_path):
    cache = tmp_path / "cache"
    options = ("--batches", "1,4,16", "--readout", "operators", "--timing-cache", cache)
    done = run(one, "--to", "tensorrt", *options, "--out", tmp_path / "it.engine")
    assert done.exit_code == 0, done.exception
    assert given["batches"] == (1, 4, 16)
    assert given["readout"] == "operators"
    assert given["timing_cache"] == cache
    assert done.stdout.splitlines() == [f"tensorrt: {tmp_path / 'it.engine'}"]


def test_left_out_they_are_the_exporters(given, one):
    assert run(one, "--to", "tensorrt").exit_code == 0
    assert not {"batches", "readout", "timing_cache"} & set(given)
    assert given["path"] == Path(one).with_name("model.engine")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "onnx", "--batches", "1,2,3"), "--batches: expected --to tensorrt, got --to onn"),
        (("--to", "triton", "--timing-cache", "x"), "--timing-cache: expected --to tensorrt"),
        (("--to", "tensorrt", "--batches", "1,many"), "--batches: expected three sizes such as"),
    ],
)
def test_mistakes(given, one, arguments, words):
    done = run(one, *arguments)
    assert isinstance(done.exception, BrainfastError)
    assert words in str(done.exception)
    assert not given
