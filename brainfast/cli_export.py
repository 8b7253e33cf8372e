"""`brainfast export`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .card import ParityCard
from .cli_options import Json, ModelFolder, Quiet, image_paths, names
from .errors import BrainfastError
from .export.opening import beside


class Target(StrEnum):
    """What is written."""

    onnx = "onnx"
    tensorrt = "tensorrt"
    triton = "triton"


class TrunkPrecision(StrEnum):
    """Of the trunk's matrices and their operands; norms, residual stream and head stay fp32."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Input(StrEnum):
    """Image bytes of one size, or pixels that the caller has preprocessed."""

    images = "images"
    pixels = "pixels"


class Readout(StrEnum):
    """FactorTopy's head in TensorRT: our kernel (bf16x3), or TensorRT's operators (fp32)."""

    plugin = "plugin"
    operators = "operators"


ENDINGS = {Target.onnx: ".onnx", Target.tensorrt: ".engine", Target.triton: "-triton"}


def export(
    model: ModelFolder,
    to: Annotated[
        Target, typer.Option(help="onnx, tensorrt: one file; triton: a model repository.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write (MODEL.onnx, MODEL-triton).")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Of a model of several: subj05, or subj01,subj02, or group (all)."),
    ] = None,
    vertices: Annotated[str | None, typer.Option(help="ROIs, e.g. FFA,PPA (all).")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores in place of responses: 'FFA - PPA', or a .npy file of weights [O,V];"
            " may be given several times."
        ),
    ] = None,
    trunk_precision: Annotated[
        TrunkPrecision, typer.Option(help="Of the trunk; the head is fp32.")
    ] = TrunkPrecision.fp32,
    source: Annotated[
        str | None,
        typer.Option(help="Height and width of the images that will come (425x425)."),
    ] = None,
    input_: Annotated[
        Input, typer.Option("--input", help="pixels: preprocessed by the caller.")
    ] = Input.images,
    images: Annotated[
        Path | None, typer.Option(help="Images to check it on (golden ones and photographs).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Algonauts folder to check it on: heldout images and R2.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest error in standard deviations of the response (by precision)."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX (20, for bf16 22).")] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="TensorRT: smallest, preferred and largest batch (1,8,32)."),
    ] = None,
    readout: Annotated[
        Readout | None, typer.Option(help="TensorRT: what computes FactorTopy's head (plugin).")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="TensorRT: file of measurements that later builds use.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Triton: of the model in requests (that of the folder).")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Triton: most images of a request (32).")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model for ONNX Runtime, TensorRT or Triton, and compare it with float64."""
    options: dict[str, Any] = {
        "subjects": names(subject),
        "vertices": names(vertices),
        "objective": objective or None,
        "input": input_.value,
        "source": None if source is None else _size(source),
        "trunk_precision": trunk_precision.value,
        "images": None if images is None else image_paths([images]),
        "data": data,
        "tolerance": tolerance,
        "opset": opset,
        "progress": not quiet,
    }
    own: dict[Target, dict[str, Any]] = {
        Target.tensorrt: {
            "batches": None if batches is None else _batches(batches),
            "readout": None if readout is None else readout.value,
            "timing_cache": timing_cache,
        },
        Target.triton: {"name": name, "max_batch": max_batch},
    }
    options |= _own_options(to, own)
    path = out or beside(model, ENDINGS[to])
    exported = _exporter(to)(model, path, **options)
    if as_json:
        parity = [card.model_dump(mode="json") for card in exported.parity]
        typer.echo(json.dumps({"path": str(exported.path), "parity": parity}, indent=2))
        return
    for line in parity_lines(exported.parity):
        typer.echo(line)
    typer.echo(f"{to.value}: {exported.path}")


def _own_options(target: Target, own: Mapping[Target, Mapping[str, Any]]) -> dict[str, Any]:
    """Those of one target that were given; of another they are a BrainfastError."""
    for other, options in own.items():
        given = [name for name, value in options.items() if value is not None]
        if given and other is not target:
            raise BrainfastError(
                f"--{given[0].replace('_', '-')}",
                expected=f"--to {other.value}",
                got=f"--to {target.value}",
            )
    chosen = own.get(target, {})
    return {name: value for name, value in chosen.items() if value is not None}


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise BrainfastError(
            "--batches", expected="three sizes such as 1,8,32", got=repr(text)
        ) from error


def parity_lines(cards: Sequence[ParityCard]) -> list[str]:
    """One line an output: its errors, what that does to R2, and whether the pixels are the same."""
    lines = []
    for card in cards:
        parts = [f"max error {card.max_error:.1e}, rms {card.rms_error:.1e} standard deviations"]
        if card.r2_change is not None:
            parts.append(f"R2 of a vertex changes by {card.r2_change:.1e} at most")
        if card.pixels_differ is not None:
            exact = "bit-exact" if card.pixels_differ == 0 else f"{card.pixels_differ} differ"
            parts.append(f"pixels {exact}")
        name = f"{card.subject}, " if card.subject else ""
        lines.append(
            f"{name}{card.form}, trunk {card.trunk_precision}, {card.images} images: "
            + "; ".join(parts)
        )
    return lines


def _exporter(target: Target) -> Any:
    """The function that writes a target; each needs libraries that the others do not."""
    module = import_module(f".export.{target.value}", __package__)
    return getattr(module, f"export_{target.value}")


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError as error:
        raise BrainfastError(
            "--source", expected="height and width such as 425x425", got=repr(text)
        ) from error
    return height, width
