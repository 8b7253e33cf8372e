"""The plugin's registration, shapes, launch and bytes, through NVIDIA's own plugin layer."""

from __future__ import annotations

import shutil
import subprocess
from types import SimpleNamespace

import fake_tensorrt
import pytest

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.export import kernel_file, tensorrt_plugin
from brainfast.export.tensorrt_plugin import INPUTS, register_readout

B, L, D, H, W, G, N, V, CELLS = 9, 3, 5, 4, 2, 11, 48, 500, 7
SHAPES = {
    "local": (B, L, D, H, W),
    "global_": (B, L, D),
    "weight": (G, D, N),
    "coefficient": (G, 5 * L, N),
    "cell": (G,),
    "corners": (CELLS, 4),
    "slots": (V,),
    "vertices": (G, N),
    "bias": (V,),
}
INDICES = ("cell", "corners", "slots", "vertices")


@pytest.fixture
def ptx(monkeypatch, tmp_path):
    """A kernel beside the module, whatever the build has."""
    monkeypatch.setattr(kernel_file, "_C", SimpleNamespace(__file__=str(tmp_path / "_C.so")))
    (tmp_path / kernel_file.PTX_FILE).write_bytes(b".version 7.0")
    return b".version 7.0"


@pytest.fixture
def layer():
    if fake_tensorrt.plugin_files() is None:
        pytest.skip("NVIDIA's plugin files are not installed: pip install tensorrt-cu13-bindings")
    with fake_tensorrt.plugin_layer() as found:
        yield found


def number(expression):
    """The value of one of the layer's symbolic expressions."""
    while not isinstance(expression, int):
        expression = next(
            getattr(expression, name)
            for name in ("expr", "_expr", "value")
            if getattr(expression, name, None) is not None
        )
    return expression


@pytest.mark.parametrize(("index", "kernel"), [("INT64", "i64"), ("INT32", "i32")])
def test_a_launch_from_registration_to_kernel(layer, ptx, index, kernel):
    core, plugins = layer
    register_readout(plugins)
    register_readout(plugins)  # a second export in one process
    creator = fake_tensorrt.CREATORS["factor_readout", "1", "brainfast"]
    plugin = creator.create_plugin(
        "factor_readout", "brainfast", [], None, core.QuickPluginCreationRequest.STRICT_AOT
    )
    kinds = [core.DataType[index if name in INDICES else "FLOAT"] for name in INPUTS]
    ranks = [len(SHAPES[name]) for name in INPUTS]
    assert plugin.get_output_data_types(kinds, ranks) == [core.DataType.FLOAT]
    builder = fake_tensorrt.ExprBuilder()
    dims = [fake_tensorrt.DimsExprs(map(builder.constant, SHAPES[name])) for name in INPUTS]
    (shape,) = plugin.get_output_shapes(dims, [], builder)
    assert [size.value for size in shape] == [B, V]

    tensors = [(SHAPES[name], kind) for name, kind in zip(INPUTS, kinds, strict=True)]
    tensors.append(((B, V), core.DataType.FLOAT))
    linear = core.TensorFormat.LINEAR
    described = [fake_tensorrt.DynamicPluginTensorDesc(*each, linear) for each in tensors]
    offered = plugin.get_supported_format_combinations(described, len(INPUTS))
    rows = [offered[i : i + len(tensors)] for i in range(0, len(offered), len(tensors))]
    assert [kind for _, kind in tensors] in [[each.type for each in row] for row in rows]
    assert {each.format for each in offered} == {linear}

    plugin.configure_plugin(described[:-1], described[-1:])
    plugin.set_tactic(0)
    params, numbers = SimpleNamespace(), type("Setter", (dict,), {})()
    plugin.get_launch_params(dims, described, len(INPUTS), params, numbers, builder)
    assert number(params.grid_x) == -(-G * N // 128) * -(-B // 8)
    assert [number(getattr(params, f"grid_{axis}")) for axis in "yz"] == [1, 1]
    assert [number(getattr(params, f"block_{axis}")) for axis in "xyz"] == [256, 1, 1]
    assert number(params.shared_mem) == tensorrt_plugin.SHARED_BYTES
    assert numbers.nbSymExprs == len(numbers) == 7
    assert [number(numbers[i]) for i in range(7)] == [B, L, D, H * W, G, N, V]
    inputs, outputs = ([each.desc for each in part] for part in (described[:-1], described[-1:]))
    assert plugin.get_kernel(inputs, outputs) == (f"brainfast_factor_readout_{kernel}", ptx)


def test_a_build_without_the_kernel_says_so_before_anything_is_registered(layer, monkeypatch):
    _, plugins = layer
    monkeypatch.setattr(kernel_file, "_C", SimpleNamespace(__file__="/nowhere/_C.so"))
    with pytest.raises(
        BrainfastError, match=r"factor_readout.ptx: .*; in the source folder: BRAIN"
    ):
        register_readout(plugins)
    assert not fake_tensorrt.CREATORS


def test_a_release_that_takes_no_kernels_is_refused():
    with pytest.raises(BrainfastError, match=r"ahead of time.*tensorrt>=10.9"):
        register_readout(SimpleNamespace())


needs_kernel = pytest.mark.skipif(
    not _C.cuda_info()["compiled"], reason="built without nvcc: there is no PTX"
)


@needs_kernel
def test_the_kernel_has_the_names_and_sizes_that_are_launched():
    text = kernel_file.kernel_ptx().decode()
    assert text.count(".entry brainfast_factor_readout_i") == 2
    assert f".maxntid {tensorrt_plugin.THREADS}" in text
    assert ".target sm_80" in text
    assert ".version 7.0" in text


@needs_kernel
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_the_kernel_assembles(architecture, tmp_path):
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas on PATH")
    path = tmp_path / "kernel.ptx"
    path.write_bytes(kernel_file.kernel_ptx())
    command = [ptxas, f"-arch=sm_{architecture}", path, "-o", tmp_path / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "is not defined for option 'gpu-name'" in done.stderr:
        pytest.skip(f"this ptxas does not know sm_{architecture}")
    assert done.returncode == 0, done.stderr
