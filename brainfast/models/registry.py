"""Names of the models that can be trained."""

from __future__ import annotations

from typing import Any

from ..errors import BrainfastError
from .blobgpt import BlobGPT, BlobGPTConfig
from .factortopy import FactorTopy
from .factortopy_config import FactorTopyConfig
from .llm_vem import LlmVem, LlmVemConfig

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "blobgpt": (BlobGPT, BlobGPTConfig),
    "factortopy": (FactorTopy, FactorTopyConfig),
    "llm-vem": (LlmVem, LlmVemConfig),
}


def model_class(name: str) -> tuple[type[Any], type[Any]]:
    """The module and the configuration class of model `name`."""
    if name not in MODELS:
        raise BrainfastError("model", expected=" or ".join(sorted(MODELS)), got=repr(name))
    return MODELS[name]


def has_subjects(name: str) -> bool:
    """Whether model `name` is one of several subjects, with a map for each."""
    return issubclass(model_class(name)[0], BlobGPT)
