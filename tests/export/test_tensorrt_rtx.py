"""TensorRT for RTX, which parses and builds without a GPU: does it take what is exported?"""

from __future__ import annotations

import pytest

from brainfast.encoder import load
from brainfast.errors import BrainfastError
from brainfast.export import export_onnx
from brainfast.export.tensorrt import export_tensorrt
from brainfast.export.tensorrt_build import build_engine
from brainfast.export.tensorrt_key import read_engine
from brainfast.trunk_export import output_names

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


@pytest.mark.parametrize("trunk_precision", ["fp32", "fp16", "bf16"])
def test_an_exported_model_builds(one, photographs, tmp_path, trunk_precision):
    path = tmp_path / "model.engine"
    exported = export_tensorrt(
        one,
        path,
        batches=(1, 2, 4),
        readout="operators",
        package="tensorrt_rtx",
        source=(40, 50),
        images=list(photographs),
        trunk_precision=trunk_precision,
    )
    key, plan = read_engine(path)
    assert len(plan) > 1e6
    assert key.input.shape == (-1, 40, 50, 3)
    assert key.outputs[0].shape == (-1, 90)
    assert exported.path == path


def test_a_model_of_several_subjects_builds(several, tmp_path):
    path = tmp_path / "model.engine"
    options = {"readout": "operators", "package": "tensorrt_rtx", "input": "pixels"}
    export_tensorrt(several, path, **options)
    key, _ = read_engine(path)
    assert [output.name for output in key.outputs] == [f"response.{name}" for name in "abc"]


def test_a_trunk_builds(one, tmp_path):
    folder = load(one).save(tmp_path / "model", onnx=True)
    options = {"package": "tensorrt_rtx", "batches": (1, 2, 4)}
    key = build_engine(folder / "trunk.onnx", folder / "trunk.engine", **options)
    assert key.input.shape == (-1, 3, 32, 32)
    assert [output.name for output in key.outputs] == output_names((0, 1))


def test_its_parser_says_what_it_does_not_take(one, photographs, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    export_onnx(one, path, source=(40, 50), images=list(photographs))
    graph = onnx.load(path)
    graph.graph.node[-1].op_type = "nothing_like_it"
    del graph.functions[:]
    onnx.save(graph, path)
    with pytest.raises(BrainfastError, match="parser takes, got nothing_like_it") as caught:
        build_engine(path, tmp_path / "e.engine", package="tensorrt_rtx", readout="operators")
    assert "\n" not in str(caught.value)
