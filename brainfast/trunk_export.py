"""A trunk as one graph, pixels to a flat tuple of tokens, and as an ONNX file.

Torch-free at import.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainfastError
from .files import atomic_with_parts

if TYPE_CHECKING:
    import torch

    from .trunks import Trunk

OPSET = 20
EXTERNAL_BYTES = 1_800_000_000  # protobuf holds 2 GiB at most, graph and weights together
FORMAT = "brainfast-trunk"
TORCH_REMEDY = "use runtime='torch'"


def export_trunk(trunk: Trunk, path: str | Path) -> None:
    """Write the trunk as ONNX, opset 20: pixels [B,3,H,W] to local.{l} and global.{l}, any B.

    Weights above 1.8 GB go to a file beside it that bears their hash, and the ONNX file appears
    last, so that a reader finds both or neither. The metadata hold the hash, layers and size.
    Errors: BrainfastError where torch cannot export the model or the disk refuses.
    """
    with atomic_with_parts(path) as written:
        _export(trunk, written)


def _export(trunk: Trunk, path: Path) -> None:
    import torch

    config = trunk.config
    model = to_onnx(
        flat_module(copy.deepcopy(trunk).cpu()),
        torch.zeros(2, 3, *config.size),
        input_name="pixels",
        output_names=output_names(config.layers),
        what=f"trunk {config.name}",
    )
    model.metadata_props.update(
        format=FORMAT,
        name=config.name,
        weights_hash=config.weights_hash,
        layers=json.dumps(config.layers),
        size=json.dumps(config.size),
    )
    save_model(model, path, config.weights_hash)


def to_onnx(
    module: torch.nn.Module,
    example: torch.Tensor,  # [2,...]
    *,
    input_name: str,
    output_names: Sequence[str],
    what: str,
    opset: int = OPSET,
) -> Any:
    """A module of one input as an onnx_ir.Model with a dynamic batch; `what` is its name in the
    BrainfastError that tells why it cannot be one."""
    import torch

    try:
        with quiet_export():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the model raises
        raise BrainfastError(
            what,
            expected="a model that torch exports to ONNX",
            got=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__,
            remedy=TORCH_REMEDY,
        ) from error
    assert program is not None
    batch = program.model.graph.inputs[0].shape
    if batch is None or isinstance(batch[0], int):  # torch may fix it without a word
        raise BrainfastError(
            what, expected="a model of any batch", got="one of a fixed batch", remedy=TORCH_REMEDY
        )
    return program.model


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


def save_model(model: Any, path: Path, digest: str) -> None:
    """Write an onnx_ir.Model; weights above EXTERNAL_BYTES go to a file that bears `digest`."""
    import onnx_ir

    total = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = f"{path.name}.{digest[:12]}.data" if total > EXTERNAL_BYTES else None
    onnx_ir.save(model, path, external_data=beside)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hold back the exporter's warnings: it has one for every operator that it does not fold."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
