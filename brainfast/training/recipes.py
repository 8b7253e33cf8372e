"""Recipes: every number of a training run, under a name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import BrainfastError
from .recipe_file import SUFFIX, read_recipe


class Recipe(BaseModel):
    """AdamW on smooth L1 with an entropy regulariser on the layer selector.

    lr: of readout and bottleneck; selector_lr: of the three selectors; smooth_l1_beta: where the
    loss turns from squared to absolute, in z units; regularizer decays linearly to zero over
    regularizer_steps; patience: epochs without a better validation R2 before the run stops;
    soup: how many of the best validation checkpoints may enter the greedy soup (0: the best alone).
    soup_split: where the soup is chosen; "heldout" is the paper's text, and leaks the test images.
    head_precision: operands of the readout's training step; bf16 rounds them, and keeps parameters
    and sums in float32; on a GPU the gradients of tokens and weights are rounded too. Validation is
    always float32.
    head: options of the model, for example dim; trunk: options of `Trunk.create`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    batch: int = Field(default=8, ge=1)
    steps_per_epoch: int = Field(default=1000, ge=1)
    max_epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=20, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    selector_lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-2, ge=0)
    smooth_l1_beta: float = Field(default=0.1, gt=0)
    regularizer: float = Field(default=0.1, ge=0)
    regularizer_steps: int = Field(default=6000, ge=1)
    scale_regularizer: bool = False
    soup: int = Field(default=10, ge=0)
    soup_split: Literal["val", "heldout"] = "val"
    head_precision: Literal["fp32", "bf16"] = "fp32"
    head: dict[str, Any] = Field(default_factory=dict)
    trunk: dict[str, Any] = Field(default_factory=dict)

    @property
    def max_steps(self) -> int:
        """Steps of a run that never stops early."""
        return self.max_epochs * self.steps_per_epoch


RECIPES: dict[str, Recipe] = {
    # FactorTopy, appendix E: the reference for real data.
    "paper": Recipe(name="paper"),
    # A random trunk on a few hundred images: standardised tokens tell its layers apart, slow
    # selectors let the readout settle first, and the regulariser is gone after 40 % of the run.
    "demo": Recipe(
        name="demo",
        batch=16,
        steps_per_epoch=100,
        max_epochs=9,
        patience=9,
        lr=1e-2,
        selector_lr=3e-4,
        regularizer_steps=360,
        soup=0,
        head={"dim": 32, "standardize": True},
        trunk={"layers": (0, 2, 4, 7, 11), "block_gain": 5.0},
    ),
}


def find_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, from a .json file, or the one that is given."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe.endswith(SUFFIX):
        return read_recipe(recipe, Recipe)
    if recipe not in RECIPES:
        raise BrainfastError("recipe", expected=" or ".join(sorted(RECIPES)), got=repr(recipe))
    return RECIPES[recipe]
