"""Names of the models that can be trained."""

from __future__ import annotations

from typing import Any

from ..errors import BrainfastError
from .factortopy import FactorTopy, FactorTopyConfig

MODELS: dict[str, tuple[type[FactorTopy], type[FactorTopyConfig]]] = {
    "factortopy": (FactorTopy, FactorTopyConfig),
}


def model_class(name: str) -> tuple[type[Any], type[Any]]:
    """The module and the configuration class of model `name`."""
    if name not in MODELS:
        raise BrainfastError("model", expected=" or ".join(sorted(MODELS)), got=repr(name))
    return MODELS[name]
