"""A model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BrainfastError
from ..files import atomic_folder, check_replaceable, write_bytes, write_json
from .about import ExportAbout, OutputAbout, VerticesAbout
from .model import input_shape
from .onnx import Exported, export_onnx
from .plan import AnyEncoder, open_encoder, renew_card

MARKER = "brainfast.json"  # says that a folder was written here, and of which model
MODEL_FILE = "model.onnx"
MAX_BATCH = 32
TYPES = {"images": "TYPE_UINT8", "pixels": "TYPE_FP32"}


def export_triton(
    model: str | Path | AnyEncoder,
    path: str | Path,
    *,
    name: str | None = None,
    max_batch: int = MAX_BATCH,
    **options: Any,
) -> Exported:
    """Write a Triton model repository `path` with one model, whole or not at all.

    name: of the model in requests; that of the model folder without. Requests that wait are batched
    up to `max_batch` images; a lone one never waits. Labels name the vertex and regions of every
    column. options: those of `export_onnx`, whose checks decide here too.
    """
    path = Path(path)
    check_replaceable(path, MARKER)
    name = _name(name, model)
    if max_batch < 1:
        raise BrainfastError("max_batch", expected="at least 1", got=str(max_batch))
    encoder = open_encoder(model)
    with atomic_folder(path, MARKER) as folder:
        place = folder / name
        (place / "1").mkdir(parents=True)
        done = export_onnx(encoder, place / "1" / MODEL_FILE, **options)
        for output in done.about.outputs:
            labels = "".join(f"{label}\n" for label in _labels(output))
            write_bytes(place / _label_file(output), labels.encode())
        config = config_text(name, done.about, encoder.trunk.config.size, max_batch)
        write_bytes(place / "config.pbtxt", config.encode())
        write_bytes(folder / "README.md", _readme(name, done.about, max_batch).encode())
        about = {"model": name, "model_hash": encoder.card.model_hash, "what": done.about.what}
        write_json(folder / MARKER, about)
        renew_card(model, encoder, done.parity)
    if isinstance(model, str | Path):
        encoder.card.write(Path(model))
    return Exported(path, done.about, done.parity)


def config_text(name: str, about: ExportAbout, size: tuple[int, int], max_batch: int) -> str:
    """config.pbtxt: inputs and outputs without the batch, dynamic batching, one warm-up request.

    size: height and width of the trunk's pixels.
    """
    kind, shape = TYPES[about.input], list(input_shape(about, size))
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{MODEL_FILE}"',
        f"max_batch_size: {max_batch}",
        f'input {{ name: "{about.input}" data_type: {kind} dims: {shape} }}',
    ]
    for output in about.outputs:
        width = sum(1 for _ in _labels(output))
        lines.append(
            f'output {{ name: "{output.name}" data_type: TYPE_FP32 dims: [{width}]'
            f' label_filename: "{_label_file(output)}" }}'
        )
    warm_up = f'key: "{about.input}" value {{ data_type: {kind} dims: {shape} zero_data: true }}'
    lines += [
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        f'model_warmup {{ name: "one black image" batch_size: 1 inputs {{ {warm_up} }} }}',
    ]
    return "\n".join(lines) + "\n"


def _labels(output: OutputAbout) -> Iterator[str]:
    """One a column: hemisphere and vertex with its regions, or the objective."""
    if output.vertices is None:
        yield from output.objectives
        return
    regions = _regions(output.vertices)
    column = 0
    for side, indices in (("lh", output.vertices.lh), ("rh", output.vertices.rh)):
        for vertex in indices:
            yield " ".join([side, str(vertex), *regions[column]])
            column += 1


def _regions(vertices: VerticesAbout) -> list[list[str]]:
    """Names of the regions that every column lies in."""
    found: list[list[str]] = [[] for _ in range(len(vertices.lh) + len(vertices.rh))]
    for name, columns in vertices.rois.items():
        for column in columns:
            found[column].append(name)
    return found


def _label_file(output: OutputAbout) -> str:
    return f"{output.name}.txt"


def _name(name: str | None, model: str | Path | AnyEncoder) -> str:
    if name is None:
        name = Path(model).resolve().name if isinstance(model, str | Path) else "brainfast"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is None:
        raise BrainfastError(
            "name of the Triton model",
            expected="letters, digits, and . _ - after the first",
            got=repr(name),
        )
    return name


def _readme(name: str, about: ExportAbout, max_batch: int) -> str:
    shape = "B,3,H,W" if about.source is None else f"B,{about.source[0]},{about.source[1]},3"
    kind = "float32" if about.source is None else "uint8"
    not_run = "We have not run this configuration in the server"
    if about.trunk_precision == "bf16":
        not_run += ", nor a trunk in bf16 in ONNX Runtime, which has no bfloat16 on CPUs"
    outputs = "\n".join(
        f"- `{output.name}`, float32; `{name}/{_label_file(output)}` names its columns"
        for output in about.outputs
    )
    return f"""# {name}: {about.what}

A model repository for NVIDIA Triton Inference Server, written by `brainfast export --to triton`.
Start it from this folder:

    docker run --rm --gpus all -e NVIDIA_TF32_OVERRIDE=0 \\
        -p 8000:8000 -p 8001:8001 -v "$PWD:/models:ro" \\
        nvcr.io/nvidia/tritonserver:25.08-py3 tritonserver --model-repository=/models

Leave `--gpus all` out on a machine without a GPU. `NVIDIA_TF32_OVERRIDE=0` keeps fp32 products in
fp32: on a GPU ONNX Runtime rounds their operands to TF32 otherwise, and the errors in the file are
no longer its errors. {not_run}.

It takes `{about.input}`, {kind} [{shape}], up to {max_batch} images a request, and gives

{outputs}

Requests that wait for the model are batched. `max_queue_delay_microseconds` in
`{name}/config.pbtxt` lets the first of them wait for others; 0 suits a running experiment.
The card, the vertices and the measured errors are in the metadata of `{name}/1/{MODEL_FILE}`.
"""
