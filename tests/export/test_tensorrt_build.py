"""Engine files and their keys: what is asked of TensorRT, and every way in which it goes wrong."""

from __future__ import annotations

import sys
from types import ModuleType

import fake_tensorrt
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from brainfast.errors import BrainfastError
from brainfast.export import tensorrt_build, tensorrt_key
from brainfast.export.functions import ATTRIBUTES, readout_function
from brainfast.export.tensorrt_build import build_engine
from brainfast.export.tensorrt_key import check_machine, key_path, read_engine
from brainfast.export.tensorrt_plugin import INPUTS

H200 = ("NVIDIA H200", "9.0")


@pytest.fixture
def graph(tmp_path):
    """Writes an ONNX file with one readout, of blocks of some width."""

    def write(width: int = 16):
        node = helper.make_node(
            "factor_readout", INPUTS, ["response"], domain="brainfast", **ATTRIBUTES
        )
        weight = np.zeros((1, 4, width), dtype=np.float32)
        inputs = [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, None)]
        outputs = [helper.make_tensor_value_info("response", onnx.TensorProto.FLOAT, None)]
        weights = [numpy_helper.from_array(weight, "weight")]
        model = helper.make_model(
            helper.make_graph([node], "readout", inputs, outputs, weights),
            functions=[readout_function(blocks=1, width=width, cells=1, layers=2, dim=4, opset=20)],
        )
        model.metadata_props.add(key="brainfast.card", value="{}")
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def install(monkeypatch):
    """Puts a fake TensorRT in the place of the package."""

    def put(builder: fake_tensorrt.FakeBuilder):
        monkeypatch.setitem(sys.modules, "tensorrt", builder.module())
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", ModuleType("tensorrt.plugin"))
        monkeypatch.setattr(tensorrt_build, "register_readout", lambda plugins: None)
        monkeypatch.setattr(tensorrt_build, "find_gpu", lambda: (None, H200))
        return builder

    return put


def test_an_engine_is_strongly_typed_and_strict_and_has_a_key(install, graph, tmp_path):
    builder, engine = install(fake_tensorrt.FakeBuilder()), tmp_path / "model.engine"
    key = build_engine(graph(), engine, batches=(1, 4, 9))
    assert builder.flags == 1 << 1
    assert builder.cleared == ["TF32"]
    assert builder.profile == ("images", (1, 40, 50, 3), (4, 40, 50, 3), (9, 40, 50, 3))
    assert read_engine(engine) == (key, b"an engine")
    assert key.metadata == {"brainfast.card": "{}"}
    assert (key.gpu, key.capability) == H200
    assert key.version == builder.version
    assert key.input.shape == (-1, 40, 50, 3)
    assert [output.shape for output in key.outputs] == [(-1, 90)]


def test_the_node_is_left_to_the_plugin(install, graph, tmp_path):
    builder = install(fake_tensorrt.FakeBuilder())
    key = build_engine(graph(), tmp_path / "model.engine", readout="plugin")
    assert key.readout == "plugin"
    parsed = onnx.ModelProto.FromString(builder.parsed)
    (node,) = parsed.graph.node
    attributes = {attribute.name: attribute for attribute in node.attribute}
    assert node.op_type == "factor_readout"
    assert attributes["plugin_namespace"].s == b"brainfast"
    assert "aot" in attributes
    assert not parsed.functions


def test_operators_have_a_name_that_no_registered_plugin_has(install, graph, tmp_path):
    builder = install(fake_tensorrt.FakeBuilder())
    build_engine(graph(), tmp_path / "model.engine", readout="plugin")  # stays registered
    key = build_engine(graph(), tmp_path / "model.engine", readout="operators")
    assert key.readout == "operators"
    parsed = onnx.ModelProto.FromString(builder.parsed)
    (node,), (function,) = parsed.graph.node, parsed.functions
    assert (node.domain, node.op_type) == (function.domain, function.name)
    assert node.op_type != "factor_readout"
    names = {attribute.name for attribute in [*node.attribute, *function.attribute_proto]}
    assert not names & {"plugin_namespace", "plugin_version", "aot"}
    assert function.node  # the body, which TensorRT computes


@pytest.mark.parametrize(("found", "used"), [(b"mine", b"mine"), (b"of another GPU", b"")])
def test_a_timing_cache_is_read_and_written(install, graph, tmp_path, found, used):
    install(fake_tensorrt.FakeBuilder())
    cache = tmp_path / "cache"
    cache.write_bytes(found)
    build_engine(graph(), tmp_path / "model.engine", timing_cache=cache)
    assert cache.read_bytes() == used + b"+"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timing_cache": "cache"}, "timing cache: expected package tensorrt, got tensorrt_rtx"),
        ({"package": "tensorrt", "timing_cache": "."}, "timing cache: expected a file, got the f"),
        (
            {"package": "tensorrt", "timing_cache": "model.onnx/cache"},
            "model.onnx: expected .*folder",
        ),
    ],
)
def test_a_place_for_no_timing_cache_is_refused_before_the_build(
    graph, tmp_path, monkeypatch, options, words
):
    monkeypatch.setattr(tensorrt_build, "open_package", None)
    options = {"package": "tensorrt_rtx"} | options
    options["timing_cache"] = tmp_path / options["timing_cache"]
    with pytest.raises(BrainfastError, match=words):
        build_engine(graph(), tmp_path / "model.engine", readout="operators", **options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.plan", r"model.plan: expected a path that ends in \.engine, got model.plan"),
        ("there.engine", r"there.engine: expected a file, got a folder"),
        ("named.engine", r"named.engine.json: expected a file, got a folder"),
        ("model.onnx/model.engine", r"model.onnx: expected .*folder"),
    ],
)
def test_a_place_for_no_engine_is_refused_before_the_build(
    graph, tmp_path, monkeypatch, name, words
):
    monkeypatch.setattr(tensorrt_build, "open_package", None)
    source = graph()
    for folder in ("there.engine", "named.engine.json"):
        (tmp_path / folder).mkdir()
    with pytest.raises(BrainfastError, match=words) as caught:
        build_engine(source, tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("refuses", "words"),
    [
        ("builder", "tensorrt: expected a machine that TensorRT builds on, got no driver at all"),
        ("parse", "parser takes, got Resize node 7: no antialias here"),
        ("build", "a model that TensorRT builds, got no memory"),
    ],
)
def test_what_tensorrt_refuses_is_one_line_and_nothing_is_written(
    install, graph, tmp_path, refuses, words
):
    install(fake_tensorrt.FakeBuilder(refuses))
    with pytest.raises(BrainfastError, match=words) as caught:
        build_engine(graph(), tmp_path / "model.engine")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.engine").exists()
    assert not key_path(tmp_path / "model.engine").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": (8, 1, 2)}, "batches: expected smallest, preferred and largest .*got 8,1,2"),
        ({"batches": (0, 1, 2)}, "batches: .* got 0,1,2"),
        ({"readout": "fast"}, "readout: expected plugin or operators"),
        ({"package": "numpy"}, "package: expected tensorrt or tensorrt_rtx"),
    ],
)
def test_options_that_there_are_not(install, graph, tmp_path, options, words):
    install(fake_tensorrt.FakeBuilder())
    with pytest.raises(BrainfastError, match=words):
        build_engine(graph(), tmp_path / "model.engine", **options)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch, graph, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BrainfastError, match=r"tensorrt: .*; pip install tensorrt"):
        build_engine(graph(), tmp_path / "model.engine")


@pytest.mark.parametrize("content", [b"", b"no onnx", b"\x08"])
def test_a_damaged_onnx_file(install, tmp_path, content):
    install(fake_tensorrt.FakeBuilder())
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BrainfastError, match="a whole ONNX file"):
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine")


def test_blocks_that_the_kernel_does_not_take(install, graph, tmp_path):
    install(fake_tensorrt.FakeBuilder())
    with pytest.raises(BrainfastError, match=r"a multiple of 16, got N = 24"):
        build_engine(graph(24), tmp_path / "model.engine")


@pytest.fixture
def engine(install, graph, tmp_path):
    install(fake_tensorrt.FakeBuilder())
    build_engine(graph(), tmp_path / "model.engine")
    return tmp_path / "model.engine"


def test_a_damaged_engine_is_refused_before_tensorrt_sees_it(engine):
    engine.write_bytes(b"an Engine")
    with pytest.raises(BrainfastError, match=r"the engine that model.engine.json describes"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"format_version": 1', b'"format_version": 2', "format_version"),
        (b'"gpu"', b'"gpus"', "gpus?: expected the key of an engine"),
        (b"{", b"", "valid JSON"),
    ],
)
def test_a_foreign_key(engine, old, new, words):
    path = key_path(engine)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(BrainfastError, match=words):
        read_engine(engine)


def test_an_engine_without_its_key(engine):
    key_path(engine).unlink()
    with pytest.raises(BrainfastError, match=r"model.engine.json: expected a file"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "10.9.0"}, "an engine for tensorrt 11.4.0, got 10.9.0; export the model aga"),
        ({"brainfast": "0.0.1"}, "an engine for brainfast .*, got 0.0.1"),
        ({"gpu": "NVIDIA A100"}, "an engine for GPU NVIDIA H200, got NVIDIA A100"),
        ({"capability": "8.0"}, "an engine for compute capability 9.0, got 8.0"),
    ],
)
def test_an_engine_of_another_machine(engine, change, words):
    key, _ = read_engine(engine)
    check_machine(engine, key, "11.4.0", H200)
    with pytest.raises(BrainfastError, match=words):
        check_machine(engine, key.model_copy(update=change), "11.4.0", H200)


def test_an_engine_of_tensorrt_for_rtx_goes_to_other_gpus(engine):
    key, _ = read_engine(engine)
    portable = key.model_copy(update={"package": "tensorrt_rtx", "gpu": None, "capability": None})
    check_machine(engine, portable, "11.4.0", ("NVIDIA GeForce RTX 5090", "12.0"))
    assert tensorrt_key.PACKAGES == ("tensorrt", "tensorrt_rtx")
