"""`fit_group`: from images and responses of several subjects to an encoder."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..card import TrainingCard
from ..data.basis import Basis, fit_basis
from ..data.group import Group
from ..data.splits import NAMES
from ..data.text import TextEmbeddings
from ..data.token_cache import hash_images
from ..errors import BrainfastError
from ..files import hash_arrays
from ..folded_blobgpt import GROUP, is_subject_name
from ..group_encoder import BASIS_FILE, GroupEncoder
from ..models.blobgpt import BlobGPT
from ..models.llm_vem import LlmVem
from ..models.registry import model_class
from ..runtimes import torch_device
from ..trunks import Trunk
from .fit import GOLDEN_IMAGES, make_config
from .group_recipes import GroupRecipe, find_group_recipe
from .group_tokens import GroupTokens, cache_tokens
from .group_trainer import GroupTrainer
from .ranks import Ranks

ALIGNED = "llm-vem"
FIXED = ("subjects", "grids", "class_token", "latent", "components")  # from phase 1 on


def fit_group(
    model: str,
    data: Group,
    *,
    phase: Literal[1, 2] = 1,
    trunk: str | Trunk = "eva02_base_patch14_224.mim_in22k",
    start: GroupEncoder | None = None,
    text: TextEmbeddings | None = None,
    recipe: str | GroupRecipe = "paper",
    pretrained: bool = True,
    trunk_weights: Path | None = None,
    layers: Sequence[int] | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> GroupEncoder:
    """Train one phase of `model` ("blobgpt" or "llm-vem") on a group, and give the encoder.

    Phase 1, the same for both, trains the head on a frozen `trunk`; the PCA embedding is fitted to
    the training part first. Phase 2 goes on from `start`, a model of phase 1, with parts of its
    trunk unfrozen. text: embeddings of the training images, for phase 2 of "llm-vem". `options` are
    the model's and win over the recipe's.

    The same call goes on where an interrupted one stopped, and ends in the same weights; other
    images or responses than before are an error, so every image is read once at the start. Under
    `torchrun` each process takes its share of every batch; the result is that of one process.
    """
    chosen = find_group_recipe(model, phase, recipe).for_pairs(len(data.train))
    _check_names(data)
    _check_arguments(model, phase, chosen, start, text)
    work = Path(work) if work is not None else _default_work(model, data, chosen, seed)
    ranks = Ranks(torch_device(device))
    if start is None:
        trunk = _make_trunk(trunk, chosen, pretrained, trunk_weights, layers, seed)
        basis = _find_basis(data, chosen, options, work, ranks, seed, progress)
        head = _new_head(data, trunk, chosen, basis, options, seed)
    else:
        trunk = copy.deepcopy(start.trunk)  # `start` stays the model that it is
        head = _continued_head(model, chosen, start, data, text, options, seed)
    tokens = None
    if chosen.cache_tokens:
        tokens = cache_tokens(
            data,
            trunk.to(ranks.device),
            chosen,
            work / "tokens",
            ranks=ranks,
            seed=seed,
            progress=progress,
        )
    images = _hash_images(data, tokens, ranks)
    trainer = GroupTrainer(
        head,
        trunk,
        chosen,
        train=data.train,
        validation={name: data.val.of(name) for name in data.subjects},
        positions=data.positions,
        text=text,
        seed=seed,
        work=work,
        key=_run_key(model, data, images, trunk, head, chosen, text, seed),
        ranks=ranks,
        progress=progress,
        tokens=tokens,
    )
    state = trainer.run()
    return GroupEncoder.assemble(
        model=ALIGNED if isinstance(head, LlmVem) else "blobgpt",
        trunk=trunk,
        head=head,
        spaces=data.spaces,
        space=data.space,
        images=[data.train.image(index) for index in range(min(GOLDEN_IMAGES, len(data.train)))],
        training=_training_card(data, chosen, state.step, state.best_step, seed),
        visual_angle_deg=data.visual_angle_deg,
        history=state.history,
    )


def _make_trunk(
    trunk: str | Trunk,
    recipe: GroupRecipe,
    pretrained: bool,
    weights: Path | None,
    layers: Sequence[int] | None,
    seed: int,
) -> Trunk:
    if isinstance(trunk, Trunk):
        return trunk
    arguments = recipe.trunk | ({"layers": tuple(layers)} if layers is not None else {})
    if pretrained or weights is not None:
        arguments.pop("block_gain", None)
    return Trunk.create(trunk, pretrained=pretrained, weights=weights, seed=seed, **arguments)


def _find_basis(
    data: Group,
    recipe: GroupRecipe,
    options: dict[str, Any],
    work: Path,
    ranks: Ranks,
    seed: int,
    progress: bool,
) -> Basis:
    """The PCA of this training part, from `work` where it lies there already."""
    path = work / BASIS_FILE
    components = int((recipe.head | options).get("components", 2048))
    if ranks.first and not _is_fitted(path, data, components):
        work.mkdir(parents=True, exist_ok=True)
        fit_basis(data.train, components, seed=seed, progress=progress).save(path)
    ranks.wait()
    return Basis.load(path, data.space)


def _is_fitted(path: Path, data: Group, components: int) -> bool:
    if not path.is_file():
        return False
    basis = Basis.load(path)
    wanted = (data.space.hash(), data.train.hash, data.train.responses_hash, components)
    found = (basis.space_hash, basis.split_hash, basis.responses_hash, basis.R)
    return found == wanted and basis.missing == data.missing


def _new_head(
    data: Group,
    trunk: Trunk,
    recipe: GroupRecipe,
    basis: Basis,
    options: dict[str, Any],
    seed: int,
) -> BlobGPT:
    make_model, config_class = model_class("blobgpt")
    about = {
        "subjects": data.subjects,
        "grids": trunk.grids,
        "class_token": trunk.class_token,
    }
    config = make_config(config_class, about | recipe.head | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = torch.from_numpy(basis.weight), torch.from_numpy(basis.bias)
        head: BlobGPT = make_model(trunk.config.channels, trunk.config.layers, config, *embedding)
    return head


def _continued_head(
    model: str,
    recipe: GroupRecipe,
    start: GroupEncoder,
    data: Group,
    text: TextEmbeddings | None,
    options: dict[str, Any],
    seed: int,
) -> BlobGPT:
    """The head of an earlier phase as `model`: with a new matrix to the texts, or without one."""
    _check_start(start, data)
    old: BlobGPT = start.head
    make_model, config_class = model_class(model)
    about = {
        name: value
        for name, value in old.config.model_dump().items()
        if name in config_class.model_fields
    }
    if text is not None and recipe.alignment is not None:
        about |= {"text_dim": text.text_dim, "temperature": recipe.alignment.temperature}
    config = make_config(config_class, about | recipe.head | options)
    _check_sizes(config, {name: getattr(old.config, name) for name in FIXED}, "model of phase 1")
    if text is not None:
        _check_sizes(config, {"text_dim": text.text_dim}, "texts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: BlobGPT = make_model(old.channels, old.layers, config, old.weight, old.bias)
    known = {
        name: value
        for name, value in old.state_dict().items()
        if name in head.state_dict() and value.shape == head.state_dict()[name].shape
    }
    head.load_state_dict(known, strict=False)
    return head


def _check_sizes(config: Any, wanted: dict[str, Any], whose: str) -> None:
    """Refuse options that do not fit what is there already."""
    for name, value in wanted.items():
        found = getattr(config, name)
        if found != value:
            raise BrainfastError(
                name,
                expected=f"{value}, as of the {whose}",
                got=str(found),
                remedy="leave it out of the recipe's head and of the options",
            )


def _check_names(data: Group) -> None:
    wrong = [name for name in data.subjects if not is_subject_name(name)]
    if wrong:
        raise BrainfastError(
            "subjects",
            expected=f"names of letters, digits, - and _, none {GROUP!r}",
            got=wrong[0],
            remedy="rename the folder, or pass {name: data} to Group",
        )


def _check_arguments(
    model: str,
    phase: int,
    recipe: GroupRecipe,
    start: GroupEncoder | None,
    text: TextEmbeddings | None,
) -> None:
    if recipe.phase != phase:
        raise BrainfastError(
            "recipe", expected=f"one of phase {phase}", got=f"one of phase {recipe.phase}"
        )
    if (recipe.phase == 2) != (start is not None):
        wanted = "a model of phase 1 to go on from" if recipe.phase == 2 else "none in phase 1"
        raise BrainfastError(
            "start",
            expected=wanted,
            got="a model" if start is not None else "none",
            remedy="train phase 1 first, and give its model (--phase 2 --from MODEL)",
        )
    if recipe.cache_tokens and recipe.phase == 2:
        raise BrainfastError(
            "cache_tokens", expected="phase 1, whose trunk is frozen", got="phase 2"
        )
    aligned = recipe.alignment is not None
    if aligned != (text is not None) or (aligned and model != ALIGNED):
        raise BrainfastError(
            "text",
            expected=f"text embeddings in phase 2 of {ALIGNED}, and nowhere else",
            got=f"{'some' if text is not None else 'none'} for phase {recipe.phase} of {model}",
            remedy="give --text embeddings.safetensors, one vector an image",
        )


def _check_start(start: GroupEncoder, data: Group) -> None:
    if start.subjects != data.subjects or start.space != data.space:
        raise BrainfastError(
            "start",
            expected=f"the subjects and vertices of this group: {', '.join(data.subjects)}",
            got=f"{', '.join(start.subjects)}, {start.space.V} vertices",
            remedy="give the folders that phase 1 was trained on, in the same order",
        )
    training = start.card.training
    if training is not None and training.data and training.data != data.options:
        raise BrainfastError(
            "start",
            expected=f"a group divided as in phase 1: {training.data}",
            got=str(data.options),
            remedy="give the same split, fractions and missing",
        )
    if training is not None and training.split_hash not in (None, data.split_hash):
        raise BrainfastError(
            "start",
            expected="the split of phase 1",
            got="another one, so that held-out images would be trained on",
            remedy="give the same images, split and seed",
        )


def _hash_images(data: Group, tokens: GroupTokens | None, ranks: Ranks) -> list[str]:
    """What the images look like, of which ids and file names tell nothing."""
    if tokens is not None:
        return [tokens.images_hash]
    sides = (data.train, data.val) if ranks.first else ()
    found: list[str] = ranks.collect([hash_images(side.images) for side in sides])[0]
    return found


def _run_key(
    model: str,
    data: Group,
    images: list[str],
    trunk: Trunk,
    head: BlobGPT,
    recipe: GroupRecipe,
    text: TextEmbeddings | None,
    seed: int,
) -> dict[str, Any]:
    """All that the weights at a given step depend on; how a batch is cut up is not part of it."""
    key = {
        "model": model,
        "trunk": trunk.config.weights_hash,
        "layers": list(trunk.config.layers),
        "preprocessing": trunk.preprocessing.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json", exclude={"micro_batch"}),
        "options": head.config.model_dump(mode="json"),
        "start": _hash_of(head),
        "split": data.split_hash,
        "missing": data.missing,
        "images": images,
        "responses": [data.train.responses_hash, data.val.responses_hash],
        "text": None if text is None else text.hash,
        "seed": seed,
    }
    parsed: dict[str, Any] = json.loads(json.dumps(key))
    return parsed


def _hash_of(head: BlobGPT) -> str:
    state = {name: value.cpu().numpy() for name, value in head.state_dict().items()}
    return hash_arrays(
        state | {"weight": head.weight.cpu().numpy(), "bias": head.bias.cpu().numpy()}
    )


def _training_card(
    data: Group, recipe: GroupRecipe, steps: int, best_step: int, seed: int
) -> TrainingCard:
    sides = [getattr(data, side) for side in NAMES]
    return TrainingCard(
        recipe=recipe.model_dump(mode="json"),
        split_hash=data.split_hash,
        split_hashes={f"{s.name}/{name}": s.of(name).hash for s in sides for name in data.subjects},
        images={
            f"{side.name}/{name}": len(side.of(name)) for side in sides for name in data.subjects
        },
        data=data.options,
        seed=seed,
        steps=steps,
        best_step=best_step,
        torch_version=str(torch.__version__),
    )


def _default_work(model: str, data: Group, recipe: GroupRecipe, seed: int) -> Path:
    parts = [*data.subjects, model, f"phase{recipe.phase}", recipe.name, str(seed)]
    return Path("brainfast-runs") / re.sub(r"[^\w.-]+", "_", "-".join(parts))
