"""An ONNX file as an engine of TensorRT, strongly typed, with its key beside it. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import onnx

from ..errors import BrainfastError
from ..files import check_writable, file_size, write_bytes, write_json
from .functions import ATTRIBUTES, DOMAIN, READOUT
from .tensorrt_key import (
    EngineKey,
    Package,
    TensorKey,
    check_place,
    find_gpu,
    key_path,
    open_package,
)
from .tensorrt_plugin import TILE, register_readout

Readout = Literal["plugin", "operators"]
BATCHES = (1, 8, 32)
OPERATORS = "_operators"  # what the name of a node that no plugin may take ends in


def build_engine(
    source: str | Path,
    path: str | Path,
    *,
    batches: Sequence[int] = BATCHES,
    readout: Readout = "plugin",
    timing_cache: str | Path | None = None,
    package: Package = "tensorrt",
) -> EngineKey:
    """Build the ONNX file `source` into the engine file `path`, for the machine that builds it.

    batches: the smallest, the preferred and the largest; readout: the node as our kernel (bf16x3)
    or as the operators of its body (fp32); timing_cache: a file of measurements that later builds
    start from, which TensorRT for RTX has none of. Layers have the types of the file, and fp32 is
    strict: no TF32. What TensorRT refuses is a BrainfastError, and nothing is written.
    """
    source, path = Path(source), Path(path)
    check_place(path)
    check_batches(batches)
    check_readout(readout)
    check_timing_cache(timing_cache, package)
    graph = read_graph(source)
    trt = open_package(package)
    name, capability = (None, None) if package == "tensorrt_rtx" else find_gpu()[1]
    if not readout_nodes(graph):
        readout = "operators"
    if readout == "plugin":
        prepare_plugin(package)
        use_plugin(graph, str(source))
    else:
        use_operators(graph)
    cache = None if timing_cache is None else Path(timing_cache)
    network, data = _build(trt, graph, source, batches, cache)
    key = EngineKey(
        brainfast=version("brainfast"),
        package=package,
        version=trt.__version__,
        gpu=name,
        capability=capability,
        batches=(batches[0], batches[1], batches[2]),
        readout=readout,
        input=_tensor(trt, network.get_input(0)),
        outputs=tuple(_tensor(trt, network.get_output(i)) for i in range(network.num_outputs)),
        metadata={entry.key: entry.value for entry in graph.metadata_props},
        engine_sha256=hashlib.sha256(data).hexdigest(),
    )
    write_bytes(path, data)
    write_json(key_path(path), key.model_dump(mode="json"))
    return key


def _build(
    trt: ModuleType,
    graph: onnx.ModelProto,
    source: Path,
    batches: Sequence[int],
    timing_cache: Path | None,
) -> tuple[Any, bytes]:
    """TensorRT's network and the engine."""
    log = _error_log(trt)
    builder = _builder(trt, log)
    network = _parse(trt, builder, graph, source, log)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, network, config, batches)
    if timing_cache is not None:
        _load_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(source, log, "a model that TensorRT builds")
    if timing_cache is not None:
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    return network, bytes(plan)


def check_batches(batches: Sequence[int]) -> None:
    """Batches that are no profile are a BrainfastError."""
    found = list(batches)
    if len(found) != 3 or not 1 <= found[0] <= found[1] <= found[2]:
        raise BrainfastError(
            "batches",
            expected="smallest, preferred and largest batch, such as 1,8,32",
            got=",".join(map(str, found)),
        )


def check_readout(readout: str) -> None:
    """A form of the readout that there is not is a BrainfastError."""
    if readout not in ("plugin", "operators"):
        raise BrainfastError("readout", expected="plugin or operators", got=repr(readout))


def check_timing_cache(path: str | Path | None, package: str) -> None:
    """A cache where there is none to keep, or a place that is no file, is a BrainfastError."""
    if path is None:
        return
    if package == "tensorrt_rtx":
        raise BrainfastError(
            "timing cache",
            expected="package tensorrt",
            got="tensorrt_rtx, which measures nothing when it builds",
            remedy="leave the timing cache out",
        )
    path = Path(path)
    if path.is_dir():
        raise BrainfastError(
            "timing cache",
            expected="a file",
            got=f"the folder {path}",
            remedy="name a file in it",
        )
    check_writable(path.parent)


def prepare_plugin(package: str) -> None:
    """Register our kernel with TensorRT; where one of them cannot, a BrainfastError says why."""
    try:
        plugins = import_module(f"{package}.plugin")
    except ImportError as error:
        raise BrainfastError(
            f"{package}.plugin",
            expected="plugins in Python",
            got=str(error),
            remedy="use readout='operators'",
        ) from error
    register_readout(plugins)


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without the weights that lie beside it."""
    file_size(path)
    try:
        graph = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own, and the disk's
        raise BrainfastError(
            str(path),
            expected="a whole ONNX file",
            got=str(error) or type(error).__name__,
            remedy="export it again",
        ) from error
    if not graph.graph.node:
        raise BrainfastError(str(path), expected="a whole ONNX file", got="one without a graph")
    return graph


def readout_nodes(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that the plugin can compute."""
    return [n for n in graph.graph.node if n.domain == DOMAIN and n.op_type == READOUT]


def use_plugin(graph: onnx.ModelProto, name: str) -> None:
    """Leave the readout to the plugin, compiled ahead of time.

    The function's body is dropped: some parsers would prefer it to the plugin.
    """
    widths = {tensor.name: tensor.dims[-1] for tensor in graph.graph.initializer if tensor.dims}
    for node in readout_nodes(graph):
        width = widths.get(node.input[2], 0)
        if width == 0 or width % TILE:
            raise BrainfastError(
                f"{name}: {READOUT}",
                expected=f"constant weights [G,D,N], N a multiple of {TILE}",
                got=f"N = {width}" if width else "weights that are computed",
                remedy="export the model again, or use readout='operators'",
            )
        node.attribute.append(onnx.helper.make_attribute("aot", 1))
    for function in [f for f in graph.functions if (f.domain, f.name) == (DOMAIN, READOUT)]:
        graph.functions.remove(function)


def use_operators(graph: onnx.ModelProto) -> None:
    """Leave our nodes to the bodies of their functions, under names that no plugin has.

    Parsers prefer a registered plugin to a function where a node names a plugin's namespace, and
    an earlier build of this process may have registered ours.
    """
    for node in (node for node in graph.graph.node if node.domain == DOMAIN):
        node.op_type += OPERATORS
        kept = [attribute for attribute in node.attribute if attribute.name not in ATTRIBUTES]
        del node.attribute[:]
        node.attribute.extend(kept)
    for function in (function for function in graph.functions if function.domain == DOMAIN):
        function.name += OPERATORS
        defaults = [a for a in function.attribute_proto if a.name not in ATTRIBUTES]
        del function.attribute_proto[:]
        function.attribute_proto.extend(defaults)


def _error_log(trt: ModuleType) -> Any:
    """A log that keeps errors for the exception, and prints nothing."""

    def open_log(log: Any) -> None:
        trt.ILogger.__init__(log)
        log.errors = []

    def keep(log: Any, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            log.errors.append(message)

    return type("ErrorLog", (trt.ILogger,), {"__init__": open_log, "log": keep})()


def _builder(trt: ModuleType, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except Exception as error:  # a null pointer of its library, as a TypeError
        raise _refused(Path(trt.__name__), log, "a machine that TensorRT builds on") from error


def _parse(trt: ModuleType, builder: Any, graph: onnx.ModelProto, source: Path, log: Any) -> Any:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.SerializeToString(), str(source)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        log.errors[:] = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors]
        raise _refused(source, log, "a model that TensorRT's parser takes")
    if network.num_inputs != 1:
        raise BrainfastError(str(source), expected="one input", got=str(network.num_inputs))
    return network


def _add_profile(builder: Any, network: Any, config: Any, batches: Sequence[int]) -> None:
    tensor = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)


def _load_cache(config: Any, path: Path) -> None:
    """Start from a file of measurements; one of another GPU or TensorRT is left aside."""
    data = path.read_bytes() if path.is_file() else b""
    if not data or not config.set_timing_cache(config.create_timing_cache(data), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _tensor(trt: ModuleType, tensor: Any) -> TensorKey:
    dtype = np.dtype(trt.nptype(tensor.dtype)).name
    return TensorKey.model_validate(
        {"name": tensor.name, "dtype": dtype, "shape": (-1, *tuple(tensor.shape)[1:])}
    )


def _refused(source: Path, log: Any, expected: str) -> BrainfastError:
    found = " ".join(str(log.errors[0]).split())[:300] if log.errors else "no reason"
    return BrainfastError(str(source), expected=expected, got=found)
