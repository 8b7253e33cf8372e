"""Weights of a trunk: fetched, read from files of other projects, checked and hashed."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import numpy as np
import torch
from safetensors import safe_open

from .errors import BrainfastError
from .files import file_size, hash_arrays
from .torch_file import read_torch_tensors

FORMAT = "brainfast-trunk"


@contextmanager
def hub_without_waiting() -> Iterator[None]:
    """With no network the hub retries for most of a minute; tell it to look in its cache only."""
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _network(urlsplit(constants.ENDPOINT).hostname)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _network(host: str | None) -> bool:
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def read_weights(path: Path, model: Any) -> dict[str, torch.Tensor]:
    """A state dict with timm's names for `model`, which is not yet pruned."""
    file_size(path)
    try:
        state, ours = _read_state(path)
        convert = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
        converted = convert(state, model) if convert and not ours else state
    except BrainfastError:
        raise
    except Exception as error:  # safetensors and timm's converters raise nearly anything
        raise BrainfastError(
            str(path),
            expected="safetensors or a torch file of plain tensors for this trunk",
            got=short(error),
            remedy="save the state dict as safetensors",
        ) from error
    return {name: value for name, value in converted.items() if isinstance(value, torch.Tensor)}


def _read_state(path: Path) -> tuple[dict[str, Any], bool]:
    """Tensors by name, and whether `Trunk.save` wrote them, so that the names are right already."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            ours = (file.metadata() or {}).get("format") == FORMAT
            return {name: file.get_tensor(name) for name in list(file.keys())}, ours
    state: Mapping[Any, Any] = read_torch_tensors(path)
    for key in ("state_dict", "model"):
        inner = state.get(key)
        state = inner if isinstance(inner, Mapping) else state
    return {str(name).removeprefix("module."): value for name, value in state.items()}, False


def load_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    """Copy `state` into `model`; extra names are left, missing or misshapen ones are errors."""
    want = model.state_dict()
    missing = [name for name in want if name not in state]
    wrong = [name for name in want if name in state and state[name].shape != want[name].shape]
    if missing:
        raise BrainfastError(
            path,
            expected=f"the {len(want)} arrays of this trunk",
            got=f"{len(missing)} missing: {', '.join(missing[:4])}",
            remedy="name the trunk and the layers that the file was saved from",
        )
    if wrong:
        name = wrong[0]
        raise BrainfastError(
            path,
            expected=f"{name} {list(want[name].shape)}",
            got=f"{list(state[name].shape)}",
            remedy="name the trunk that the file was saved from",
        )
    model.load_state_dict({name: state[name] for name in want})


def parameter_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of the state dict, in the order of the names."""
    return hash_arrays(parameter_arrays(model))


def short(error: Exception) -> str:
    """A foreign error as at most 200 characters of one line."""
    text = " ".join(str(error).split())[:200]
    return text if " " in text else f"{type(error).__name__} {text}".strip()
