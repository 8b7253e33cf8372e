"""What NVIDIA's plugin layer (the Python files of the bindings' wheel) needs of TensorRT's core.

The core itself needs TensorRT's libraries. Here expressions are evaluated at once, so that what
the layer hands over can be read as numbers.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from brainfast.export import tensorrt, tensorrt_build, tensorrt_runtime

BINDINGS = "tensorrt_bindings"  # the wheel's package
CREATORS: dict[tuple[str, str, str], Any] = {}
DATA_TYPES = "FLOAT HALF BF16 INT8 INT32 INT64 BOOL UINT8 FP8 INT4 FP4 E8M0"
OPERATIONS = {
    "SUM": lambda a, b: a + b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "MIN": min,
    "SUB": lambda a, b: a - b,
    "EQUAL": lambda a, b: int(a == b),
    "LESS": lambda a, b: int(a < b),
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class IDimensionExpr:
    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class ExprBuilder:
    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(self, kind: Any, a: IDimensionExpr, b: IDimensionExpr) -> IDimensionExpr:
        return IDimensionExpr(OPERATIONS[kind.name](a.value, b.value))


class DimsExprs(list[Any]):
    def __init__(self, items: Any) -> None:
        super().__init__([None] * items if isinstance(items, int) else items)


class DynamicPluginTensorDesc:
    def __init__(self, shape: tuple[int, ...], kind: Any, layout: Any) -> None:
        self.desc = SimpleNamespace(type=kind, format=layout, scale=1.0, dims=shape)
        self.opt = self.min = self.max = shape


class Logger:
    WARNING = 1

    def log(self, *_: Any) -> None:
        """The layer says at import that it is experimental."""


class Registry:
    def register_creator(self, creator: Any, namespace: str) -> bool:
        CREATORS[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return CREATORS.get((name, version, namespace))


def make_core() -> ModuleType:
    """A module that stands for `tensorrt` while the layer is imported."""
    core = ModuleType("tensorrt")
    data_types = enum.Enum("DataType", DATA_TYPES)
    names = [
        *("IPluginV3", "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime"),
        *("IPluginV3QuickAOTBuild", "IPluginCreatorV3Quick", "ITensor", "IExprBuilder"),
        *("ISymExpr", "ISymExprs", "PluginTensorDesc", "PluginField"),
    ]
    for name in names:
        setattr(core, name, type(name, (), {"__init__": lambda self, *_: None}))
    contents = {
        "IDimensionExpr": IDimensionExpr,
        "DimsExprs": DimsExprs,
        "Dims": type("Dims", (), {"MAX_DIMS": 8}),
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
        "DataType": data_types,
        "Logger": Logger,
        "DimensionOperation": enum.Enum("DimensionOperation", list(OPERATIONS)),
        "TensorFormat": enum.Enum("TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 HWC"),
        "PluginFieldType": enum.Enum(
            "PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR UNKNOWN BF16 INT64"
        ),
        "PluginArgType": enum.Enum("PluginArgType", "INT"),
        "PluginArgDataType": enum.Enum("PluginArgDataType", "INT8 INT16 INT32"),
        "QuickPluginCreationRequest": enum.Enum(
            "QuickPluginCreationRequest", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT"
        ),
        "TensorRTPhase": enum.Enum("TensorRTPhase", "BUILD RUNTIME"),
        "PluginFieldCollection": list,
        "get_plugin_registry": Registry,
        "float32": data_types.FLOAT,
        "float16": data_types.HALF,
        "bfloat16": data_types.BF16,
    }
    for name in ("int8", "int32", "int64", "bool", "uint8", "fp8", "int4", "fp4"):
        contents[name] = data_types[name.upper()]
    for name, value in contents.items():
        setattr(core, name, value)
    return core


def plugin_files() -> Path | None:
    """The folder of the bindings' Python files, where the wheel is installed."""
    spec = importlib.util.find_spec(BINDINGS)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else None


@contextmanager
def plugin_layer() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(the fake core, NVIDIA's own `plugin` package over it), for as long as the block runs."""
    before = {name: sys.modules.pop(name) for name in _own()}
    package = ModuleType(BINDINGS)
    package.__path__ = [str(plugin_files())]
    core = make_core()
    sys.modules.update({"tensorrt": core, BINDINGS: package})
    try:
        yield core, importlib.import_module(f"{BINDINGS}.plugin")
    finally:
        for name in _own():
            del sys.modules[name]
        sys.modules.update(before)
        CREATORS.clear()


def _own() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("tensorrt", BINDINGS)]


class Severity(enum.IntEnum):
    ERROR = 1
    WARNING = 2


def _tensor(value: Any) -> SimpleNamespace:
    """An ONNX input or output as TensorRT describes it: a free size is -1."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    sizes = value.type.tensor_type.shape.dim
    shape = tuple(-1 if size.dim_param else size.dim_value for size in sizes)
    return SimpleNamespace(name=value.name, dtype=kind, shape=shape)


class FakeBuilder:
    """Records what the building of an engine asks TensorRT for.

    refuses: what fails; keeps_graph: the engine's bytes are those of the ONNX file, and its inputs
    and outputs are that file's.
    """

    version = "11.4.0"

    def __init__(self, refuses: str = "", *, keeps_graph: bool = False) -> None:
        self.refuses, self.keeps_graph = refuses, keeps_graph
        self.flags = 0
        self.parsed = b""
        self.profile: tuple[Any, ...] = ()
        self.cleared: list[str] = []
        self.cache = b""
        self.log: Any = None

    def module(self) -> ModuleType:
        """The package `tensorrt`, whose builder this is."""
        found = ModuleType("tensorrt")
        logger = type("ILogger", (), {"Severity": Severity, "__init__": lambda self: None})
        parts = {
            "__version__": self.version,
            "ILogger": logger,
            "Builder": self._open,
            "OnnxParser": lambda network, log: self,
            "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
            "BuilderFlag": SimpleNamespace(TF32="TF32"),
            "nptype": lambda dtype: dtype,
        }
        for name, value in parts.items():
            setattr(found, name, value)
        return found

    def _open(self, log: Any) -> FakeBuilder:
        self.log = log
        if self.refuses == "builder":
            log.log(Severity.ERROR, "no driver\nat all")
            raise TypeError("factory function returned nullptr")
        return self

    # The builder, its network, parser, profile, configuration and timing cache, all in one.
    num_inputs, num_errors = 1, 1

    @property
    def num_outputs(self) -> int:
        return len(self._graph().output) if self.keeps_graph else 1

    def _graph(self) -> Any:
        return onnx.ModelProto.FromString(self.parsed).graph

    def create_network(self, flags: int) -> FakeBuilder:
        self.flags = flags
        return self

    def parse(self, graph: bytes, path: str) -> bool:
        self.parsed = graph
        return self.refuses != "parse"

    def get_error(self, _: int) -> SimpleNamespace:
        texts = {"node_operator": "Resize", "node_name": "node 7", "desc": "no antialias\nhere"}
        return SimpleNamespace(**{name: lambda text=text: text for name, text in texts.items()})

    def get_input(self, _: int) -> SimpleNamespace:
        if self.keeps_graph:
            return _tensor(self._graph().input[0])
        return SimpleNamespace(name="images", dtype="uint8", shape=(-1, 40, 50, 3))

    def get_output(self, number: int) -> SimpleNamespace:
        if self.keeps_graph:
            return _tensor(self._graph().output[number])
        return SimpleNamespace(name="response", dtype="float32", shape=(-1, 90))

    def create_builder_config(self) -> FakeBuilder:
        return self

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def create_optimization_profile(self) -> FakeBuilder:
        return self

    def set_shape(self, *shapes: Any) -> None:
        self.profile = shapes

    def add_optimization_profile(self, _: Any) -> None:
        """The profile is this object."""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache != b"of another GPU"

    def get_timing_cache(self) -> FakeBuilder:
        return self

    def serialize(self) -> bytes:
        return self.cache + b"+"

    def build_serialized_network(self, *_: Any) -> bytes | None:
        if self.refuses == "build":
            self.log.log(Severity.WARNING, "something")
            self.log.log(Severity.ERROR, "no memory")
            return None
        return self.parsed if self.keeps_graph else b"an engine"


class GraphBucket:
    """Runs the graph that the engine's bytes are, in batches of at most its size."""

    drift = 0.0

    def __init__(self, engine: bytes, key: Any, device: Any, size: int) -> None:
        self.session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
        self.size = size

    def run(self, inputs: Any) -> list[Any]:
        assert len(inputs) <= self.size
        (name,) = (tensor.name for tensor in self.session.get_inputs())
        return [answer + self.drift for answer in self.session.run(None, {name: inputs})]


def install_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and TensorRT, for both of which ONNX Runtime stands."""
    module = FakeBuilder(keeps_graph=True).module()
    parts = {
        "Logger": type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        "Runtime": lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: plan),
    }
    for name, value in parts.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    gpu = torch.device("cuda", 0), ("NVIDIA H200", "9.0")
    for place in (tensorrt, tensorrt_build, tensorrt_runtime):
        monkeypatch.setattr(place, "find_gpu", lambda device="cuda": gpu)
    monkeypatch.setattr(tensorrt_runtime, "_Bucket", GraphBucket)
    monkeypatch.setattr(tensorrt_runtime.EngineSession, "_on_device", lambda self: nullcontext())
