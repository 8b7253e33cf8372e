"""Exported files: the engine's answers, what is in them, and that a bad one is never left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from brainfast import trunk_export
from brainfast.card import Card, ParityCard
from brainfast.encoder import load
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel, export_onnx
from brainfast.export import onnx as exporting
from brainfast.export.about import from_metadata
from brainfast.group_engine import GroupEngine
from brainfast.images import preprocess

SOURCE = (40, 50)


def values(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    return OnnxModel(path, device="cpu", threads=1).run(images)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-4 * expected.std())


def weights_in(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def test_the_file_gives_the_engines_answers_in_any_batch(one, whole, photographs) -> None:
    expected = Engine.load(one, device="cpu").predict(photographs)
    for count in (1, 3):
        found = values(whole, photographs[:count])
        assert list(found) == ["response"]
        assert close(found["response"], expected.values[:count])


def test_the_head_is_one_node_by_the_contract_with_the_plugin(whole) -> None:
    model = onnx.load(whole)
    ours = [node for node in model.graph.node if node.domain == "brainfast"]
    assert [node.op_type for node in ours] == ["factor_readout"]
    attributes = {attribute.name: attribute.s for attribute in ours[0].attribute}
    assert attributes == {"plugin_namespace": b"brainfast", "plugin_version": b"1"}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = [tuple(constants[name].dims) for name in ours[0].input[2:]]
    (blocks, dim, width), layers = shapes[0], 2
    cells = shapes[3][0]
    assert (dim, width) == (4, 64)
    assert shapes == [
        (blocks, dim, width),
        (blocks, 5 * layers, width),
        (blocks,),
        (cells, 4),
        (90,),
        (blocks, width),
        (90,),
    ]
    types = [constants[name].data_type for name in ours[0].input[2:]]
    number, whole_number = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert types == [number, number, *[whole_number] * 4, number]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20, "brainfast": 1}
    onnx.checker.check_model(model, full_check=True)


def test_no_block_beyond_the_deepest_is_in_the_file(whole) -> None:
    """Of a ViT with 12 blocks, 0 and 1 are read."""
    model = onnx.load(whole)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Softmax") == 2
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    produced = {name for node in model.graph.node for name in node.output if name}
    assert produced - used == {"response"}


def test_the_metadata_hold_the_card_the_parity_and_the_vertices(one, whole) -> None:
    model = onnx.load(whole)
    found = {entry.key: entry.value for entry in model.metadata_props}
    card, about = from_metadata("it", found)
    encoder = load(one)
    assert card.model_hash == encoder.card.model_hash
    parity = [entry for entry in card.parity if entry.form == "onnx file"]
    assert len(parity) == 1
    assert parity[0].images == 5
    assert 0 < parity[0].rms_error <= parity[0].max_error < 1e-4
    assert parity[0].pixels_differ == 0
    assert parity[0] in Card.read(one).parity
    assert about.source == SOURCE
    assert about.outputs[0].vertices is not None
    assert about.outputs[0].vertices.space() == encoder.space
    assert about.outputs[0].vertices.space().roi("PPA").tolist() == list(range(61, 90))
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path.cwd()) not in str(model.metadata_props)


def test_several_subjects_and_a_region_of_them(several, photographs, tmp_path) -> None:
    export_onnx(several, tmp_path / "all.onnx", source=SOURCE, images=list(photographs))
    expected = GroupEngine.load(several, device="cpu").predict(photographs)
    found = values(tmp_path / "all.onnx", photographs)
    assert list(found) == ["response.a", "response.b", "response.c"]
    for subject, response in expected.items():
        assert close(found[f"response.{subject}"], response.values)
    nodes = [n.op_type for n in onnx.load(tmp_path / "all.onnx").graph.node if n.domain]
    assert nodes == ["factor_projection"] * 2 + ["vertex_embed"] * 3
    export_onnx(
        several,
        tmp_path / "part.onnx",
        subjects=["b"],
        vertices=["FFA-1"],
        source=SOURCE,
        images=list(photographs),
    )
    part = values(tmp_path / "part.onnx", photographs)
    assert close(part["response"], expected["b"].values[:, 11:])
    forms = {(card.form, card.subject) for card in Card.read(several).parity}
    assert {("onnx file", "a"), ("onnx file: FFA-1", "b")} <= forms


def test_several_samples_a_vertex(make_one, photographs, tmp_path) -> None:
    folder = make_one(samples=3, bottleneck="dual")
    export_onnx(folder, tmp_path / "it.onnx", source=SOURCE, images=list(photographs))
    expected = Engine.load(folder, device="cpu").predict(photographs).values
    assert close(values(tmp_path / "it.onnx", photographs)["response"], expected)


def test_objectives_become_scores_that_touch_no_vertex(one, photographs, tmp_path) -> None:
    weights = np.random.default_rng(0).standard_normal((2, 90)).astype(np.float32)
    np.save(tmp_path / "weights.npy", weights)
    path = tmp_path / "scores.onnx"
    options = {"source": SOURCE, "images": list(photographs)}
    wanted = ["EBA - 0.5*PPA", tmp_path / "weights.npy"]
    done = export_onnx(one, path, objective=wanted, **options)
    response = Engine.load(one, device="cpu").predict(photographs)
    contrast = response.roi("EBA").mean(axis=1) - 0.5 * response.roi("PPA").mean(axis=1)
    scores = np.column_stack([contrast, response.values @ weights.T])
    found = values(path, photographs)["scores"]
    assert (np.abs(found - scores).max(axis=0) <= 1e-3 * scores.std(axis=0)).all()
    assert all(90 not in tensor.dims for tensor in weights_in(path).values())
    assert done.about.outputs[0].objectives == ("EBA - 0.5*PPA", "weights 1", "weights 2")
    assert done.about.outputs[0].vertices is None


def test_pixels_may_be_the_input(one, photographs, tmp_path) -> None:
    export_onnx(one, tmp_path / "it.onnx", input="pixels", images=list(photographs))
    pixels = preprocess(list(photographs), Card.read(one).trunk.preprocessing)
    expected = Engine.load(one, device="cpu").predict(photographs).values
    assert close(values(tmp_path / "it.onnx", pixels)["response"], expected)
    model = OnnxModel(tmp_path / "it.onnx", device="cpu", threads=1)
    predicted = model.predict(photographs)["response"]
    assert close(predicted.values, expected)
    assert model.card.parity[-1].pixels_differ is None


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 20), ("bf16", 22)])
def test_half_precision_is_the_trunks_and_its_drift_is_measured(
    one, photographs, tmp_path, precision, opset
) -> None:
    path = tmp_path / "it.onnx"
    options = {"source": SOURCE, "images": list(photographs)}
    done = export_onnx(one, path, trunk_precision=precision, **options)
    kinds = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    for name, tensor in weights_in(path).items():
        if "norm" in name or (name.startswith("head") and tensor.dims):
            assert tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
        if "qkv" in name or "patch_embed" in name:
            assert tensor.data_type == kinds[precision]
    assert done.about.opset == opset
    assert 1e-5 < done.parity[0].max_error < 0.1
    assert done.parity[0].form.endswith("run by torch") == (precision == "bf16")


def test_big_weights_go_to_a_file_beside(one, photographs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trunk_export, "EXTERNAL_BYTES", 1000)
    path = tmp_path / "it.onnx"
    for older in ("it.onnx.0123456789ab.data", "other.onnx.0123456789ab.data"):
        (tmp_path / older).touch()
    export_onnx(one, path, source=SOURCE, images=list(photographs))
    (tmp_path / "other.onnx.0123456789ab.data").unlink()
    beside = [name for name in os.listdir(tmp_path) if name != "it.onnx"]
    assert len(beside) == 1
    assert beside[0].startswith("it.onnx.")
    assert path.stat().st_size < 200_000 < (tmp_path / beside[0]).stat().st_size
    expected = Engine.load(one, device="cpu").predict(photographs).values
    assert close(values(path, photographs)["response"], expected)
    (tmp_path / beside[0]).unlink()
    with pytest.raises(BrainfastError, match="expected a whole ONNX file and its data"):
        OnnxModel(path)


def test_a_drift_beyond_the_tolerance_leaves_nothing(one, photographs, tmp_path, monkeypatch):
    before = (one / "config.json").read_bytes()
    monkeypatch.setattr(trunk_export, "EXTERNAL_BYTES", 1000)
    with pytest.raises(BrainfastError, match="expected errors of at most 1e-12"):
        export_onnx(
            one, tmp_path / "it.onnx", source=SOURCE, images=list(photographs), tolerance=1e-12
        )
    assert os.listdir(tmp_path) == []
    assert (one / "config.json").read_bytes() == before


def test_an_older_file_survives_a_failed_export(one, tmp_path, monkeypatch) -> None:
    path = tmp_path / "it.onnx"
    path.write_bytes(b"older")

    def fail(*_arguments, **_options):
        raise RuntimeError("unsupported\nsecond line")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(BrainfastError, match="exports to ONNX, got unsupported"):
        export_onnx(one, path, source=SOURCE)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["it.onnx"]


MISTAKES = {
    "opset: expected 20 to 23": {"opset": 19},
    "opset: expected 22 to 23 for a trunk in bf16": {"opset": 20, "trunk_precision": "bf16"},
    "trunk precision: expected fp32 or fp16 or bf16, got int8": {"trunk_precision": "int8"},
    "source: expected height and width in 1..16384": {"source": (0, 5)},
    "input: expected images or pixels": {"input": "floats"},
    "got both": {"vertices": ["EBA"], "objective": np.zeros((1, 90))},
    "subject: expected a model of several subjects": {"subjects": ["a"]},
    "ROI: expected a region": {"vertices": ["FFA"]},
    "objective: expected 90 weights, one a vertex": {"objective": np.ones((1, 89))},
    "objective: expected finite weights": {"objective": np.full((1, 90), np.nan)},
    "expected a region that this subject has": {"objective": "FFA - PPA"},
    "nothing.npy: expected a .npy file": {"objective": "nothing.npy"},
    "expected images or data": {"images": [], "data": "subj01"},
    "images: expected at least one": {"images": []},
    "source: expected none with input pixels": {"input": "pixels", "source": (40, 50)},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_before_any_work(one, tmp_path, monkeypatch, message) -> None:
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: pytest.fail("it has begun to work"))
    with pytest.raises(BrainfastError, match=message):
        export_onnx(one, tmp_path / "it.onnx", **MISTAKES[message])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "got"), [("folder.onnx", "a folder"), ("it.pt", "the ending '.pt'"), ("it", "''")]
)
def test_a_name_that_no_command_would_open(one, tmp_path, monkeypatch, name, got) -> None:
    monkeypatch.setattr(exporting, "open_encoder", lambda *_: pytest.fail("it has begun to work"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(BrainfastError, match=rf"{name}: expected a file that ends in .*{got}"):
        export_onnx(one, tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.onnx"]


def test_a_model_folder_that_cannot_be_written_to(one, tmp_path, monkeypatch) -> None:
    access = os.access
    monkeypatch.setattr("os.access", lambda place, how: place != one and access(place, how))
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: pytest.fail("it has begun to work"))
    with pytest.raises(BrainfastError, match=f"{one}: expected a place that can be written to"):
        export_onnx(one, tmp_path / "it.onnx")
    assert os.listdir(tmp_path) == []


def changed_meanwhile(monkeypatch, folder: Path, **change: object) -> None:
    """Let the card of a model folder change while its graph is made."""
    to_onnx = exporting.to_onnx

    def meanwhile(*arguments, **options):
        card = Card.read(folder)
        card.model_copy(update=change).write(folder)
        return to_onnx(*arguments, **options)

    monkeypatch.setattr(exporting, "to_onnx", meanwhile)


def test_what_others_wrote_into_the_card_meanwhile_is_kept(
    one, photographs, tmp_path, monkeypatch
) -> None:
    folder = Path(shutil.copytree(one, tmp_path / "model"))
    older = ParityCard(
        form="engine",
        precision="bf16",
        trunk_precision="fp32",
        images=2,
        max_error=0.1,
        rms_error=0.1,
    )
    changed_meanwhile(monkeypatch, folder, parity=(older,), licence="mine")
    options = {"source": SOURCE, "images": list(photographs)}
    done = export_onnx(folder, tmp_path / "it.onnx", **options)
    assert Card.read(folder).parity == (older, *done.parity)
    assert Card.read(folder).licence == "mine"


def test_another_model_in_the_folder_meanwhile_is_refused(
    one, photographs, tmp_path, monkeypatch
) -> None:
    folder = Path(shutil.copytree(one, tmp_path / "model"))
    changed_meanwhile(monkeypatch, folder, model_hash="0" * 64, parity=())
    with pytest.raises(BrainfastError, match=r"model [0-9a-f]{12}, which .* got 0{12} by now"):
        export_onnx(folder, tmp_path / "it.onnx", source=SOURCE, images=list(photographs))
    assert os.listdir(tmp_path) == ["model"]
    assert Card.read(folder).parity == ()


def test_subjects_that_the_model_lacks(several, tmp_path) -> None:
    with pytest.raises(BrainfastError, match="subject: expected one of a, b, c, group, got 'd'"):
        export_onnx(several, tmp_path / "it.onnx", subjects=["a", "d"])
    with pytest.raises(BrainfastError, match="subjects: expected at least one"):
        export_onnx(several, tmp_path / "it.onnx", subjects=[])
