"""An encoder as an engine file of TensorRT: exported as ONNX, built, and compared with float64."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..card import ParityCard
from ..files import write_json
from .about import to_metadata
from .onnx import Exported, export_onnx
from .parity import TOLERANCE, check_tolerance, choose_stimuli, measure
from .plan import AnyEncoder, make_plan, open_encoder, renew_card
from .tensorrt_build import (
    BATCHES,
    Readout,
    build_engine,
    check_batches,
    check_readout,
    check_timing_cache,
    prepare_plugin,
)
from .tensorrt_key import EngineKey, Package, check_place, find_gpu, key_path, open_package
from .tensorrt_runtime import TensorRTModel

FORM = "tensorrt engine"
FACTORTOPY = "factortopy"  # whose head is the node that a plugin computes


def export_tensorrt(
    model: str | Path | AnyEncoder,
    path: str | Path,
    *,
    batches: Sequence[int] = BATCHES,
    readout: Readout = "plugin",
    timing_cache: str | Path | None = None,
    package: Package = "tensorrt",
    **options: Any,
) -> Exported:
    """Write a model folder or an encoder as an engine file for this machine's GPU and TensorRT.

    options: as of `export_onnx`. batches, readout, timing_cache and package: as of `build_engine`.
    path: ends in .engine; folders on the way are made. The engine is compared with the float64
    twin, as `export_onnx` does it, and kept only if it answers right; its errors go into the
    model's card and the key, `path`.json. Its pixels are no output and are compared in the ONNX
    file only. TensorRT for RTX builds without a GPU as well, and nothing is compared then: the
    parity is the ONNX file's, and the model's card stays as it is.
    """
    path = Path(path)
    check_place(path)
    check_batches(batches)
    check_readout(readout)
    check_timing_cache(timing_cache, package)
    open_package(package)
    runs_here = package != "tensorrt_rtx" or _sees_gpu()
    if runs_here:
        find_gpu()
    encoder = open_encoder(model)
    if readout == "plugin" and encoder.card.model == FACTORTOPY and _responses(options):
        prepare_plugin(package)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        graph, engine = Path(folder) / "model.onnx", Path(folder) / path.name
        exported = _export_for_now(encoder, graph, options)
        key = build_engine(
            graph,
            engine,
            batches=batches,
            readout=readout,
            timing_cache=timing_cache,
            package=package,
        )
        cards = exported.parity
        if runs_here:
            cards = _compare(encoder, engine, key, exported, options)
            renew_card(model, encoder, cards)
            own = {"metadata": key.metadata | to_metadata(encoder.card, exported.about)}
            write_json(key_path(engine), key.model_copy(update=own).model_dump(mode="json"))
        for built in (engine, key_path(engine)):
            built.replace(path.parent / built.name)
    if runs_here and isinstance(model, str | Path):
        encoder.card.write(Path(model))
    return Exported(path, exported.about, cards)


def _export_for_now(encoder: AnyEncoder, graph: Path, options: dict[str, Any]) -> Exported:
    """`export_onnx` to a file that will be deleted: the encoder's card keeps no parity of it."""
    card = encoder.card
    try:
        return export_onnx(encoder, graph, **options)
    finally:
        encoder.card = card


def _compare(
    encoder: AnyEncoder, engine: Path, key: EngineKey, exported: Exported, options: dict[str, Any]
) -> tuple[ParityCard, ...]:
    """Cards of the engine, which become the encoder's; a drift over the tolerance is an error."""
    about = exported.about
    plan = make_plan(
        encoder, options.get("subjects"), options.get("vertices"), options.get("objective")
    )
    data = options.get("data")
    stimuli = choose_stimuli(plan, options.get("images"), None if data is None else Path(data))
    opened = TensorRTModel(engine)

    most = key.batches[2]

    def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        parts = [opened.run(inputs[i : i + most]) for i in range(0, len(inputs), most)]
        return [np.concatenate([part[name] for part in parts]) for name in opened.outputs]

    named = FORM if plan.whole else f"{FORM}: {plan.what}"
    head = "bf16x3" if key.readout == "plugin" else about.head_precision
    kind = (named, about.trunk_precision, head)
    progress = bool(options.get("progress"))
    cards = measure(plan, run, stimuli, source=about.source, form=kind, progress=progress)
    tolerance = options.get("tolerance")
    check_tolerance(cards, TOLERANCE[about.trunk_precision] if tolerance is None else tolerance)
    for card in cards:
        encoder.keep_parity(card)
    return tuple(cards)


def _sees_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _responses(options: dict[str, Any]) -> bool:
    """Whether the file will give responses; scores need no readout."""
    return options.get("objective") is None
