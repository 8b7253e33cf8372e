"""Model repositories against Triton's own schema, and against the model that they hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from brainfast.card import Card
from brainfast.encoder import load
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel, export_onnx, export_triton, triton
from brainfast.export.plan import make_plan
from brainfast.export.triton import config_text


def parsed(folder: Path):
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=ImportError)
    text_format = pytest.importorskip("google.protobuf.text_format")
    text = (folder / "config.pbtxt").read_text()
    return schema, text_format.Parse(text, schema.ModelConfig())


@pytest.fixture(scope="module")
def repository(one, photographs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "repository"
    done = export_triton(one, path, source=(40, 50), images=list(photographs), max_batch=16)
    assert done.path == path
    return path


def test_the_configuration_is_what_tritons_schema_accepts(repository):
    schema, config = parsed(repository / "model")
    assert (config.name, config.backend, config.max_batch_size) == ("model", "onnxruntime", 16)
    assert config.default_model_filename == "model.onnx"
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("images", schema.TYPE_UINT8, [40, 50, 3])
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("response", schema.TYPE_FP32, [90])
    ]
    assert config.HasField("dynamic_batching")
    warm_up = config.model_warmup[0]
    assert warm_up.batch_size == 1
    assert warm_up.inputs["images"].zero_data
    assert list(warm_up.inputs["images"].dims) == [40, 50, 3]


def test_the_repository_is_laid_out_as_triton_reads_it(repository, one, photographs):
    assert sorted(os.listdir(repository)) == ["README.md", "brainfast.json", "model"]
    assert sorted(os.listdir(repository / "model")) == ["1", "config.pbtxt", "response.txt"]
    model = OnnxModel(repository / "model" / "1" / "model.onnx", device="cpu", threads=1)
    assert model.run(photographs)["response"].shape == (5, 90)
    assert model.card.model_hash == Card.read(one).model_hash
    assert json.loads((repository / "brainfast.json").read_text())["model"] == "model"
    readme = (repository / "README.md").read_text()
    assert "docker run" in readme
    assert "-e NVIDIA_TF32_OVERRIDE=0" in readme
    assert "uint8 [B,40,50,3], up to 16 images" in readme
    assert model.card.parity[-1] in Card.read(one).parity


def test_labels_name_every_column_and_its_regions(repository, one):
    lines = (repository / "model" / "response.txt").read_text().splitlines()
    space = load(one).space
    assert len(lines) == 90
    assert lines[0].split() == ["lh", str(space.lh[0]), "EBA"]
    inside = {name: np.flatnonzero([name in line.split() for line in lines]) for name in space.rois}
    for name, columns in inside.items():
        assert columns.tolist() == space.roi(name).tolist()


def test_outputs_of_several_subjects_and_of_objectives(several, one, tmp_path):
    for folder, options, expected in (
        (several, {"subjects": ["a", "b"]}, {"response.a": 16, "response.b": 16}),
        (one, {"objective": np.ones((3, 90), np.float32)}, {"scores": 3}),
    ):
        plan = make_plan(load(folder), options.get("subjects"), None, options.get("objective"))
        about = _about(plan)
        (tmp_path / "config.pbtxt").write_text(config_text("it", about, (32, 32), 8))
        schema, config = parsed(tmp_path)
        assert {output.name: output.dims[0] for output in config.output} == expected
        assert config.input[0].data_type == schema.TYPE_FP32
        assert list(config.input[0].dims) == [3, 32, 32]


def _about(plan):
    from brainfast.export.about import ExportAbout

    return ExportAbout(
        input="pixels",
        source=None,
        trunk_precision="fp32",
        opset=20,
        what=plan.what,
        outputs=plan.outputs(),
        versions={},
    )


def test_a_repository_is_replaced_and_nothing_else_is(one, repository, photographs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BrainfastError, match=r"expected a new folder, or one with brainfast\.json"):
        export_triton(one, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    before = sorted(repository.rglob("*"))
    with pytest.raises(BrainfastError, match="expected errors of at most 1e-12"):
        export_triton(one, repository, source=(40, 50), images=list(photographs), tolerance=1e-12)
    assert sorted(repository.rglob("*")) == before


def test_the_readme_says_what_was_not_run(one, repository, photographs, tmp_path):
    readme = (repository / "README.md").read_text()
    assert "We have not run this configuration in the server.\n" in readme
    options = {"source": (40, 50), "images": list(photographs), "vertices": ["PPA"]}
    export_triton(one, tmp_path / "it", trunk_precision="bf16", **options)
    assert "server, nor a trunk in bf16 in ONNX Runtime" in (tmp_path / "it/README.md").read_text()


def test_a_card_that_changed_meanwhile_is_kept_or_refused(one, photographs, tmp_path, monkeypatch):
    model = Path(shutil.copytree(one, tmp_path / "model"))
    changes = [{"licence": "mine"}, {"model_hash": "0" * 64}]

    def meanwhile(*arguments, **options):
        Card.read(model).model_copy(update=changes.pop(0)).write(model)
        return export_onnx(*arguments, **options)

    monkeypatch.setattr(triton, "export_onnx", meanwhile)
    options = {"source": (40, 50), "images": list(photographs), "vertices": ["PPA"]}
    done = export_triton(model, tmp_path / "it", **options)
    assert Card.read(model).licence == "mine"
    assert Card.read(model).parity[-1:] == done.parity
    with pytest.raises(BrainfastError, match=r"got 0{12} by now"):
        export_triton(model, tmp_path / "other", **options)
    assert sorted(os.listdir(tmp_path)) == ["it", "model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "pixels", "source": (40, 50)}, "source: expected none with input pixels"),
        ({"name": "../up"}, "name of the Triton model: expected letters"),
        ({"max_batch": 0}, "max_batch: expected at least 1"),
    ],
)
def test_mistakes(one, tmp_path, options, message):
    with pytest.raises(BrainfastError, match=message):
        export_triton(one, tmp_path / "repository", **options)
    assert os.listdir(tmp_path) == []
