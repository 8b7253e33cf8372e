"""Recipes of BlobGPT and LLM-VEM: every number of a phase, under a name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import BrainfastError
from .recipe_file import SUFFIX, read_recipe


class Alignment(BaseModel):
    """loss += strength * InfoNCE(text, W latent).

    temperature: divides the cosine similarities, learned where `learn_temperature`; direction:
    "both" averages image -> text and text -> image. Source: LLM-VEM, "Loss function".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: float = Field(default=1e-3, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    learn_temperature: bool = False
    direction: Literal["both", "image_to_text", "text_to_image"] = "both"


class GroupRecipe(BaseModel):
    """One phase: AdamW under a cosine with warm-up, on the squared error over present vertices.

    phase: 1 trains the head on a frozen trunk, 2 goes on from a model with parts of the trunk
    unfrozen. batch: images of a step, over all ranks and micro-batches; micro_batch: as many as fit
    in memory at a time (all without); epochs: instead of steps, passes over all pairs of a subject
    and an image; lr falls to min_lr by the last step; check_every: steps between validations, of
    which the best is kept; validation_images: a subject's first so many (all without); crop_scale:
    random square crops of this share of the image, (1, 1) for none; unfreeze: trunk parameters
    whose names contain one of these, and none of keep_frozen; trunk_precision: of the trunk in
    training ("bf16": autocast); cache_tokens: in phase 1, compute the tokens of one view of each
    image once and keep them on disk; freeze_head: of phase 2; head: options of the model; trunk:
    options of `Trunk.create`.
    Source: BlobGPT report, Tables 2 and 3; LLM-VEM, "Model Settings".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    phase: Literal[1, 2] = 1
    batch: int = Field(default=512, ge=2)
    micro_batch: int | None = Field(default=None, ge=1)
    steps: int = Field(default=5000, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    warm_up: int = Field(default=250, ge=0)
    lr: float = Field(default=6e-4, gt=0)
    min_lr: float = Field(default=3e-5, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.8, ge=0)
    crop_scale: tuple[float, float] = (0.8, 1.0)
    check_every: int = Field(default=250, ge=1)
    validation_images: int | None = Field(default=None, ge=2)
    unfreeze: tuple[str, ...] = ()
    keep_frozen: tuple[str, ...] = ("norm",)
    cache_tokens: bool = False
    freeze_head: bool = False
    trunk_precision: Literal["fp32", "bf16"] = "fp32"
    alignment: Alignment | None = None
    head: dict[str, Any] = Field(default_factory=dict)
    trunk: dict[str, Any] = Field(default_factory=dict)

    def changed(self, values: dict[str, Any]) -> GroupRecipe:
        """The recipe with other values of some fields, checked; a shorter run warms up shorter.

        steps and epochs replace each other.
        """
        if "steps" in values:
            values = {"epochs": None} | values
        steps = values.get("steps", self.steps)
        warm_up = min(self.warm_up, steps // 10) if steps < self.steps else self.warm_up
        fitted = {"warm_up": warm_up, "check_every": min(self.check_every, steps)}
        return GroupRecipe(**(self.model_dump() | fitted | values))

    def for_pairs(self, count: int) -> GroupRecipe:
        """The recipe with `steps` for its epochs over so many pairs; as it is without epochs."""
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * count / min(self.batch, count)))
        return self.changed({"steps": steps, "epochs": self.epochs})


_EVA = {"layers": (0, 2, 4, 6, 8, 10)}
# A random trunk on a simulated group: its first blocks still carry what the images look like.
_DEMO: dict[str, Any] = {
    "batch": 32,
    "steps": 200,
    "warm_up": 10,
    "lr": 1e-2,
    "min_lr": 1e-4,
    "weight_decay": 1.0,
    "crop_scale": (1.0, 1.0),
    "check_every": 25,
    "head": {"latent": 96, "components": 16, "dropout": 0.1},
    "trunk": {"layers": (0, 1, 2, 3)},
}
_TUNING: dict[str, Any] = {
    "phase": 2,
    "batch": 192,
    "steps": 2000,
    "warm_up": 100,
    "lr": 1e-5,
    "min_lr": 0.0,
    "unfreeze": ("attn",),
    "trunk_precision": "bf16",
}

# By (model, phase, name).
GROUP_RECIPES: dict[tuple[str, int, str], GroupRecipe] = {
    ("blobgpt", 1, "paper"): GroupRecipe(name="paper", trunk_precision="bf16", trunk=_EVA),
    ("blobgpt", 2, "paper"): GroupRecipe(name="paper", **_TUNING),
    ("llm-vem", 2, "paper"): GroupRecipe(
        name="paper",
        **(_TUNING | {"batch": 184, "epochs": 6}),
        alignment=Alignment(),
        freeze_head=True,
    ),
    ("blobgpt", 1, "demo"): GroupRecipe(name="demo", **_DEMO),
    ("blobgpt", 2, "demo"): GroupRecipe(
        name="demo",
        **(_TUNING | {"batch": 16, "steps": 20, "warm_up": 2, "check_every": 10}),
        crop_scale=(1.0, 1.0),
    ).model_copy(update={"trunk_precision": "fp32"}),
}
for _phase in (1, 2):
    GROUP_RECIPES["llm-vem", _phase, "demo"] = GROUP_RECIPES["blobgpt", _phase, "demo"]
GROUP_RECIPES["llm-vem", 1, "paper"] = GROUP_RECIPES["blobgpt", 1, "paper"]
GROUP_RECIPES["llm-vem", 2, "demo"] = GROUP_RECIPES["blobgpt", 2, "demo"].model_copy(
    update={"alignment": Alignment(strength=0.1)}
)


def find_group_recipe(model: str, phase: int, recipe: str | GroupRecipe) -> GroupRecipe:
    """A recipe by name, from a .json file, or the one that is given."""
    if isinstance(recipe, GroupRecipe):
        return recipe
    if recipe.endswith(SUFFIX):
        return read_recipe(recipe, GroupRecipe)
    names = sorted(name for m, p, name in GROUP_RECIPES if (m, p) == (model, phase))
    if recipe not in names:
        raise BrainfastError(
            "recipe",
            expected=f"{' or '.join(names) or 'a model of several subjects'}, phase 1 or 2",
            got=f"{recipe!r} for {model}, phase {phase}",
        )
    return GROUP_RECIPES[model, phase, recipe]
