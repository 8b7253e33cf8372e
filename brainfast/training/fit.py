"""`fit`: from images and responses to an encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import ValidationError

from ..data.splits import Split
from ..data.token_cache import TokenCache
from ..encoder import Encoder
from ..errors import BrainfastError
from ..files import hash_arrays
from ..models.registry import has_subjects, model_class
from ..runtimes import torch_device
from ..trunks import Trunk
from ..vertex_space import VertexSpace
from .examples import Examples, Resident
from .recipes import Recipe, find_recipe
from .trainer import Trainer

GOLDEN_IMAGES = 4


class Dataset(Protocol):
    """What `fit` needs of a data set: brainfast.data.Algonauts, Arrays, or your own."""

    train: Split
    val: Split
    heldout: Split
    space: VertexSpace
    surface: Literal["inflated", "sphere"]
    visual_angle_deg: float | None
    split_hash: str

    @property
    def coordinates(self) -> np.ndarray: ...  # [V,3]


def fit(
    model: str,
    data: Dataset,
    *,
    trunk: str | Trunk,
    recipe: str | Recipe = "paper",
    pretrained: bool = True,
    trunk_weights: Path | None = None,
    layers: Sequence[int] | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    cache_dtype: Literal["fp32", "bf16"] = "bf16",
    resident: Resident = "auto",
    progress: bool = True,
    **options: Any,
) -> Encoder:
    """Train head `model` on a frozen trunk and give the encoder.

    Tokens of every image are computed once and kept in `work` (default: brainfast-runs/<run>),
    with the checkpoints; the same call goes on where an interrupted one stopped, and ends in the
    same weights as an uninterrupted one. `options` are the model's (for example dim=64) and win
    over the recipe's. Training that diverges is a BrainfastError that names the step.
    """
    if has_subjects(model):
        raise BrainfastError(
            "model",
            expected="a model of one subject",
            got=model,
            remedy="use fit_group, with a brainfast.data.Group",
        )
    recipe = find_recipe(recipe)
    make_model, config_class = model_class(model)
    config = make_config(config_class, {"surface": data.surface} | recipe.head | options)
    place = torch_device(device)
    coordinates = data.coordinates  # asked for now, since they may have to be fetched
    if not isinstance(trunk, Trunk):
        arguments = recipe.trunk | ({"layers": tuple(layers)} if layers is not None else {})
        if pretrained or trunk_weights is not None:
            arguments.pop("block_gain", None)
        trunk = Trunk.create(
            trunk, pretrained=pretrained, weights=trunk_weights, seed=seed, **arguments
        )
    work = Path(work) if work is not None else _default_work(model, data, trunk, recipe, seed)
    splits = [data.train, data.val]
    if recipe.soup > 1 and recipe.soup_split == "heldout":
        splits.append(data.heldout)
    cache = TokenCache.build(
        work / "tokens",
        trunk.to(place),
        [image for split in splits for image in split.images],
        grid=config.grid,
        dtype=cache_dtype,
        progress=progress,
    )
    head = _new_head(make_model, coordinates, trunk, config, seed)
    if config.standardize:
        head.set_moments(*cache.moments(range(len(data.train.images))))
    starts = np.cumsum([0, *(len(split.images) for split in splits)]).tolist()
    examples = [_examples(cache, *pair) for pair in zip(splits, starts, strict=False)]
    trainer = Trainer(
        head,
        recipe,
        train=examples[0],
        validation=examples[1],
        soup=examples[-1],
        seed=seed,
        work=work,
        key=_run_key(model, data, splits, trunk, recipe, config, seed),
        device=place,
        progress=progress,
        resident=resident,
    )
    state = trainer.run()
    soup_steps = trainer.choose()
    return Encoder.from_training(
        model=model,
        trunk=trunk,
        head=head,
        data=data,
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        steps=state.step,
        best_step=state.best_step,
        soup_steps=soup_steps,
        golden_images=data.train.images[:GOLDEN_IMAGES],
        history=state.history,
    )


def make_config(config_class: Any, options: dict[str, Any]) -> Any:
    """A model's options, checked; one that it does not know is a BrainfastError."""
    try:
        return config_class(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise BrainfastError(
            ".".join(str(part) for part in first["loc"]),
            expected="an option of the model with a value that it knows",
            got=f"{first['input']!r} ({first['msg']})",
        ) from error


def _new_head(
    make_model: Any, coordinates: np.ndarray, trunk: Trunk, config: Any, seed: int
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        points = torch.from_numpy(np.ascontiguousarray(coordinates, dtype=np.float32))
        return make_model(points, trunk.config.channels, trunk.config.layers, config)


def _examples(cache: TokenCache, split: Split, offset: int) -> Examples:
    if split.responses is None or len(split.responses) == 0:
        raise BrainfastError(
            f"the {split.name} split",
            expected="images with responses",
            got="none",
            remedy="give more images, or other fractions",
        )
    return Examples(
        lambda indices: cache.stored([index + offset for index in indices]), split.responses
    )


def _run_key(
    model: str,
    data: Dataset,
    splits: Sequence[Split],
    trunk: Trunk,
    recipe: Recipe,
    config: Any,
    seed: int,
) -> dict[str, Any]:
    """All that the weights at a given step depend on; when a run ends is not part of it."""
    responses = [split.responses.hash() for split in splits if split.responses is not None]
    key = {
        "model": model,
        "trunk": trunk.config.weights_hash,
        "layers": list(trunk.config.layers),
        "preprocessing": trunk.preprocessing.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json", exclude={"max_epochs", "patience"}),
        "options": config.model_dump(mode="json"),
        "split": data.split_hash,
        "responses": responses,
        "coordinates": hash_arrays({"coordinates": np.asarray(data.coordinates)}),
        "seed": seed,
    }
    parsed: dict[str, Any] = json.loads(json.dumps(key))
    return parsed


def _default_work(model: str, data: Dataset, trunk: Trunk, recipe: Recipe, seed: int) -> Path:
    parts = [data.space.subject or "subject", model, trunk.config.name, recipe.name, str(seed)]
    return Path("brainfast-runs") / re.sub(r"[^\w.-]+", "_", "-".join(parts))
