"""Checkpoints: one safetensors file with weights, optimiser and progress, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from ..errors import BrainfastError
from ..files import file_size, write_bytes

STATES = ("exp_avg", "exp_avg_sq", "step")


class Progress(BaseModel):
    """Where a run stands: enough, with the weights, to go on as if it had never stopped."""

    model_config = ConfigDict(extra="forbid")

    key: dict[str, Any]
    step: int = 0
    best_step: int = 0
    best_r2: float | None = None
    history: list[dict[str, float]] = []
    kept: dict[int, float] = {}

    def check_key(self, path: Path, key: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run, and name what differs."""
        changed = sorted(k for k in {*key, *self.key} if key.get(k) != self.key.get(k))
        if changed:
            raise BrainfastError(
                str(path),
                expected="a checkpoint of the same run",
                got=f"another {', '.join(changed)}",
                remedy="give another work folder, or delete this one",
            )


def save_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write weights, AdamW's moments and `progress` to `path`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, state in _states(model, optimizer):
        for kind in STATES:
            tensors[f"{kind}.{name}"] = state[kind]
    write_bytes(path, _serialise(tensors, {"progress": progress.model_dump_json()}))


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, key: dict[str, Any]
) -> Progress:
    """Restore what `save_checkpoint` wrote; a damaged file or another run's is a BrainfastError."""
    tensors, metadata = _read(path)
    try:
        progress = Progress.model_validate(json.loads(metadata["progress"]))
    except (KeyError, ValueError) as error:
        raise _damaged(path, "no progress record") from error
    progress.check_key(path, key)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    try:
        model.load_state_dict(weights)
        for name, parameter in model.named_parameters():
            if f"step.{name}" in tensors:
                optimizer.state[parameter] = {
                    kind: tensors[f"{kind}.{name}"].to(parameter.device) for kind in STATES
                }
    except (RuntimeError, KeyError) as error:
        raise _damaged(path, "other tensors than this model's") from error
    return progress


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Write the weights alone."""
    write_bytes(path, _serialise(model.state_dict(), {}))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read what `save_weights` wrote."""
    return _read(path)[0]


def _states(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[tuple[str, dict[str, torch.Tensor]]]:
    return [
        (name, optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    ]


def _serialise(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data: bytes = serialise(plain, metadata)
    return data


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    file_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> BrainfastError:
    return BrainfastError(
        str(path), expected="a whole checkpoint", got=what, remedy="delete it to start again"
    )
