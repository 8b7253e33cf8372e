"""An encoder as one ONNX file: images in, responses or scores out, checked before it is kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray

from ..card import ParityCard
from ..errors import BrainfastError
from ..files import atomic_with_parts
from ..runtimes import open_session, run_session
from ..trunk_export import OPSET, save_model, to_onnx
from ..vertex_space import Selection
from . import functions
from .about import ExportAbout, TrunkPrecision, to_metadata
from .graph import PIXELS, ExportGraph, check_source
from .heads import Projection, Readout, VertexEmbed
from .opening import check_place
from .parity import TOLERANCE, Run, check_tolerance, choose_stimuli, measure
from .plan import AnyEncoder, Objectives, Plan, make_plan, open_encoder, renew_card

SOURCE = (425, 425)  # of NSD's images
BF16_OPSET = 22  # the first whose convolution takes bfloat16
LAST_OPSET = 23
FORM = "onnx file"


@dataclass(frozen=True)
class Exported:
    """A file that was written: what it says about itself, and how far it is from float64."""

    path: Path
    about: ExportAbout
    parity: tuple[ParityCard, ...]


def export_onnx(
    model: str | Path | AnyEncoder,
    path: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    vertices: Selection = None,
    objective: Objectives | None = None,
    input: Literal["images", "pixels"] = "images",
    source: tuple[int, int] | None = None,
    trunk_precision: TrunkPrecision = "fp32",
    opset: int | None = None,
    images: Sequence[Any] | None = None,
    data: str | Path | None = None,
    tolerance: float | None = None,
    progress: bool = False,
) -> Exported:
    """Write a model folder or an encoder as ONNX, and keep the file only if it answers right.

    path: a name that ends in .onnx; folders that it lies in are made. input: "images", uint8
    [B,H0,W0,3] of the size `source` (that of NSD's images), preprocessed inside; "pixels", float32
    [B,3,H,W] by `images.preprocess`. Outputs: `response` [B,V] in z units, of the `vertices` named
    (all), or `scores` [B,O] of an `objective`; of a model of several subjects one for each of
    `subjects` (all), as `response.subj01`. The batch is dynamic, the head is fp32.

    The file is compared with the float64 twin on `images`, on the heldout split of a subject's
    folder `data`, or on the golden images and some photographs; the errors go into its metadata and
    the model's card. An error above `tolerance` standard deviations is a BrainfastError, and
    nothing is written. Weights above 1.8 GB go to a file beside it.
    """
    path = Path(path)
    check_place(path, ".onnx")
    encoder = open_encoder(model)
    plan = make_plan(encoder, subjects, vertices, objective)
    size = _source(input, source)
    number = _opset(opset, trunk_precision)
    stimuli = choose_stimuli(plan, images, None if data is None else Path(data))
    about = _about(plan, size, trunk_precision, number)
    graph = ExportGraph(encoder.trunk, plan.head(), source=size, precision=trunk_precision)
    outputs = [output.name for output in about.outputs]
    graph_model = graph_to_model(graph, outputs, number, str(path))
    with atomic_with_parts(path) as written:
        save_model(graph_model, written, _digest(encoder, about))
        form, run = _runner(graph, written)
        named = form if plan.whole else f"{form}: {plan.what}"
        kind = (named, trunk_precision, about.head_precision)
        cards = measure(plan, run, stimuli, source=size, form=kind, progress=progress)
        check_tolerance(cards, TOLERANCE[trunk_precision] if tolerance is None else tolerance)
        for card in cards:
            encoder.keep_parity(card)
        if size is not None:
            graph_model.graph.outputs.pop()  # the pixels, which were there to be compared
        graph_model.metadata_props.update(to_metadata(encoder.card, about))
        save_model(graph_model, written, _digest(encoder, about))
        onnx.checker.check_model(str(written), full_check=True)
        renew_card(model, encoder, cards)
    _remove_old_weights(path, _digest(encoder, about))
    if isinstance(model, str | Path):
        encoder.card.write(Path(model))
    return Exported(path, about, tuple(cards))


def graph_to_model(graph: ExportGraph, outputs: Sequence[str], opset: int, what: str) -> Any:
    """The graph as an onnx_ir.Model; one that takes images has the pixels as its last output."""
    from_images = graph.to_pixels is not None
    model = to_onnx(
        graph,
        graph.example(),
        input_name="images" if from_images else "pixels",
        output_names=[*outputs, PIXELS] if from_images else outputs,
        what=what,
        opset=opset,
    )
    for node in model.graph.all_nodes():  # paths and lines of this machine's Python files
        node.metadata_props.clear()
    add_functions(model, graph.head, opset)
    return model


def add_functions(model: Any, head: torch.nn.Module, opset: int) -> None:
    """Put the functions of a head's nodes into an onnx_ir.Model."""
    protos = [part.function(opset) for part in head.modules() if isinstance(part, Readout)]
    kinds = {type(part) for part in head.modules()}
    if Projection in kinds:
        protos.append(functions.projection_function(opset))
    if VertexEmbed in kinds:
        protos.append(functions.embed_function(opset))
    for proto in protos:
        function = onnx_ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        model.opset_imports[functions.DOMAIN] = functions.VERSION


def _source(input: str, source: tuple[int, int] | None) -> tuple[int, int] | None:
    if input not in ("images", "pixels"):
        raise BrainfastError("input", expected="images or pixels", got=repr(input))
    if input == "pixels":
        if source is not None:
            raise BrainfastError(
                "source",
                expected="none with input pixels, whose size is the trunk's",
                got=f"{source[0]} x {source[1]}",
                remedy="leave it out, or export with input images",
            )
        return None
    size = SOURCE if source is None else source
    check_source(size)
    return size


def _opset(opset: int | None, precision: TrunkPrecision) -> int:
    if precision not in TOLERANCE:
        raise BrainfastError("trunk precision", expected=" or ".join(TOLERANCE), got=precision)
    lowest = BF16_OPSET if precision == "bf16" else OPSET
    number = lowest if opset is None else opset
    if not lowest <= number <= LAST_OPSET:
        raise BrainfastError(
            "opset", expected=f"{lowest} to {LAST_OPSET} for a trunk in {precision}", got=str(opset)
        )
    return number


def _about(
    plan: Plan, source: tuple[int, int] | None, precision: TrunkPrecision, opset: int
) -> ExportAbout:
    return ExportAbout(
        input="pixels" if source is None else "images",
        source=source,
        trunk_precision=precision,
        opset=opset,
        what=plan.what,
        outputs=plan.outputs(),
        versions={name: version(name) for name in ("brainfast", "torch", "onnx", "onnxscript")},
    )


def _digest(encoder: AnyEncoder, about: ExportAbout) -> str:
    text = encoder.card.model_hash + about.model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_old_weights(path: Path, digest: str) -> None:
    """Weights beside the file that an older export of this name left."""
    ours = re.compile(re.escape(path.name) + r"\.([0-9a-f]{12})\.data")
    for beside in path.parent.iterdir():
        found = ours.fullmatch(beside.name)
        if found and found[1] != digest[:12]:
            beside.unlink()


def _runner(graph: ExportGraph, path: Path) -> tuple[str, Run]:
    """What runs the file, and how: ONNX Runtime, or torch where that has no bfloat16 on a CPU."""
    if graph.operands is torch.bfloat16:

        def run(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
            with torch.inference_mode():
                return [output.numpy() for output in graph(torch.from_numpy(inputs))]

        return f"{FORM}, run by torch", run
    session = open_session(path)
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    return FORM, lambda inputs: run_session(session, {name: inputs}, outputs)
