"""A trunk as one graph, pixels to a flat tuple of tokens, and as an ONNX file.

Torch-free at import.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BrainfastError
from .files import atomic_path

if TYPE_CHECKING:
    import torch

    from .trunks import Trunk

OPSET = 20
EXTERNAL_BYTES = 1_800_000_000  # protobuf holds 2 GiB at most, graph and weights together
FORMAT = "brainfast-trunk"


def export_trunk(trunk: Trunk, path: str | Path) -> None:
    """Write the trunk as ONNX, opset 20: pixels [B,3,H,W] to local.{l} and global.{l}, any B.

    Weights above 1.8 GB go to a file beside it that bears their hash, and the ONNX file appears
    last, so that a reader finds both or neither. The metadata hold the hash, layers and size.
    Errors: BrainfastError where torch cannot export the model or the disk refuses.
    """
    path = Path(path)
    with (
        atomic_path(path) as final,
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        written = _export(trunk, Path(folder), path.name)
        for extra in sorted(set(Path(folder).iterdir()) - {written}):
            with atomic_path(path.parent / extra.name) as place:
                shutil.move(extra, place)
        os.replace(written, final)


def _export(trunk: Trunk, folder: Path, name: str) -> Path:
    import torch

    config = trunk.config
    try:
        with _quiet("onnxscript"):
            program = torch.onnx.export(
                flat_module(copy.deepcopy(trunk).cpu()),
                (torch.zeros(2, 3, *config.size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=output_names(config.layers),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the model raises
        raise BrainfastError(
            f"trunk {config.name}",
            expected="a model that torch exports to ONNX",
            got=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__,
            remedy="use runtime='torch'",
        ) from error
    assert program is not None
    program.model.metadata_props.update(
        format=FORMAT,
        name=config.name,
        weights_hash=config.weights_hash,
        layers=json.dumps(config.layers),
        size=json.dumps(config.size),
    )
    written = folder / f"{name}.{config.weights_hash[:12]}"
    total = sum(value.numel() * value.element_size() for value in trunk.state_dict().values())
    program.save(str(written), external_data=total > EXTERNAL_BYTES)
    return written


def flat_module(trunk: Trunk, *, autocast: bool = False) -> torch.nn.Module:
    """pixels [B,3,H,W] -> local tokens of every layer, then global ones, as `output_names` says.

    autocast: matrix products on bf16 operands, written into whatever is exported from it.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
                tokens = self.trunk(pixels)
                return (*tokens.local, *tokens.global_)

    return Flat().eval()


def output_names(layers: Sequence[int]) -> list[str]:
    """Names of the exported outputs: local.{l} of every layer, then global.{l}."""
    return [f"{kind}.{layer}" for kind in ("local", "global") for layer in layers]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back a logger's warnings: the exporter has one for every operator it does not fold."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
