"""A recipe from a JSON file, such as the one that a model's card keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import BrainfastError
from ..files import read_json

SUFFIX = ".json"
AnyRecipe = TypeVar("AnyRecipe", bound=BaseModel)


def read_recipe(path: str | Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """The recipe in a file; its own fields, or a model's config.json that holds it.

    Fields that are left out have the paper's values. What is unknown or out of range is a
    BrainfastError.
    """
    path = Path(path)
    if not path.is_file():
        raise BrainfastError(str(path), expected="a JSON file", got="nothing there")
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("training"), dict):
        value = value["training"].get("recipe")
    if not isinstance(value, dict):
        raise BrainfastError(
            str(path),
            expected="the fields of a recipe, as under training.recipe in a model's config.json",
            got=type(value).__name__,
        )
    try:
        return kind.model_validate({"name": path.stem} | value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BrainfastError(
            f"{path}: {place}", expected=f"a field of {kind.__name__}", got=first["msg"]
        ) from error
