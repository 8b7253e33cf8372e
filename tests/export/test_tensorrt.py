"""`export_tensorrt` from model to engine file, where ONNX Runtime stands for TensorRT and GPU."""

from __future__ import annotations

import os
import shutil

import fake_tensorrt
import numpy as np
import pytest

from brainfast.card import Card
from brainfast.encoder import load
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel, export_onnx, tensorrt
from brainfast.export.about import from_metadata
from brainfast.export.tensorrt import export_tensorrt
from brainfast.export.tensorrt_key import read_engine
from brainfast.export.tensorrt_runtime import TensorRTModel


@pytest.fixture
def machine(monkeypatch):
    fake_tensorrt.install_graphs(monkeypatch)


@pytest.fixture
def model(one, tmp_path):
    """As it was saved: other tests export it, and their parity stands in its card."""
    folder = shutil.copytree(one, tmp_path / "model")
    Card.read(folder).model_copy(update={"parity": ()}).write(folder)
    return folder


def export(model, path, photographs, **options):
    return export_tensorrt(
        model,
        path,
        batches=(1, 2, 2),
        readout="operators",
        source=(40, 50),
        images=list(photographs),
        **options,
    )


def test_an_engine_answers_as_the_model_and_its_errors_go_into_the_card(
    machine, model, photographs, tmp_path
):
    path = tmp_path / "model.engine"
    exported = export(model, path, photographs)
    (card,) = exported.parity
    assert (card.form, card.precision, card.images) == ("tensorrt engine", "fp32", 5)
    assert 0 < card.max_error < 1e-4
    assert Card.read(model).parity[-1] == card
    assert {kept.form for kept in Card.read(model).parity}.isdisjoint({"onnx file"})
    held, about = from_metadata(str(path), read_engine(path)[0].metadata)
    assert held.parity == Card.read(model).parity
    assert about == exported.about
    assert sorted(os.listdir(tmp_path)) == ["model", "model.engine", "model.engine.json"]
    export_onnx(model, tmp_path / "model.onnx", source=(40, 50), images=list(photographs))
    expected = OnnxModel(tmp_path / "model.onnx", device="cpu").predict(photographs)["response"]
    found = TensorRTModel(path, card=Card.read(model)).predict(photographs)["response"]
    assert np.array_equal(found.values, expected.values)
    assert found.space.hash() == expected.space.hash()
    assert read_engine(path)[0].batches == (1, 2, 2)


def test_the_parity_of_an_onnx_file_that_stays_is_kept(machine, model, photographs, tmp_path):
    export_onnx(model, tmp_path / "model.onnx", source=(40, 50), images=list(photographs[:2]))
    (before,) = (kept for kept in Card.read(model).parity if kept.form == "onnx file")
    encoder = load(model)
    export(encoder, tmp_path / "model.engine", photographs)
    assert [kept for kept in encoder.card.parity if kept.form == "onnx file"] == [before]
    assert encoder.card.parity[-1].form == "tensorrt engine"


def test_folders_on_the_way_are_made(machine, model, photographs, tmp_path):
    path = tmp_path / "new" / "one" / "model.engine"
    export(model, path, photographs)
    assert sorted(os.listdir(path.parent)) == ["model.engine", "model.engine.json"]


def test_a_place_for_no_engine_is_refused_before_the_export(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "export_onnx", None)
    (tmp_path / "there.engine").mkdir()
    for name, words in (("model.plan", r"ends in \.engine"), ("there.engine", "got a folder")):
        with pytest.raises(BrainfastError, match=words):
            export_tensorrt(model, tmp_path / name)
    options = {"package": "tensorrt_rtx", "timing_cache": tmp_path / "cache"}
    with pytest.raises(BrainfastError, match="timing cache: expected package tensorrt"):
        export_tensorrt(model, tmp_path / "model.engine", **options)
    assert sorted(os.listdir(tmp_path)) == ["model", "there.engine"]


def test_an_engine_that_drifts_leaves_nothing(machine, model, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.GraphBucket, "drift", 0.1)
    with pytest.raises(BrainfastError, match="tensorrt engine: expected errors of at most"):
        export(model, tmp_path / "model.engine", photographs)
    assert os.listdir(tmp_path) == ["model"]
    forms = {card.form for card in Card.read(model).parity}
    assert not forms & {"tensorrt engine", "onnx file"}


def test_a_build_without_the_kernel_says_so_before_the_export(
    machine, model, tmp_path, monkeypatch
):
    def refuse(package):
        raise BrainfastError("factor_readout.ptx", expected="the kernel", got="none")

    monkeypatch.setattr(tensorrt, "prepare_plugin", refuse)
    monkeypatch.setattr(tensorrt, "export_onnx", None)
    with pytest.raises(BrainfastError, match=r"factor_readout.ptx"):
        export_tensorrt(model, tmp_path / "model.engine")
