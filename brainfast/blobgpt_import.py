"""Imports the checkpoints that BlobGPT's authors published, and others of their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .card import TrainingCard
from .data.group import Group
from .errors import BrainfastError
from .files import hash_file
from .group_encoder import GroupEncoder
from .models.blobgpt import BlobGPT, BlobGPTConfig
from .torch_file import read_torch_tensors
from .trunk_weights import load_weights
from .trunks import Trunk
from .vertex_space import VertexSpace

TRUNK = "eva02_base_patch14_224.mim_in22k"
LAYERS = (0, 2, 4, 6, 8, 10)
PREFIXES = ("module.", "_orig_mod.", "model.")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
GOLDEN_IMAGES = 4
CITATION = (
    "Lane and Kiar 2023, A Parameter-efficient Multi-subject Model for Predicting fMRI Activity, "
    "arXiv:2308.02351"
)


class _Entry(NamedTuple):
    """An array of the public head: its name there and here, and its shape."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    grid: tuple[int, ...] | None = None  # height and width that [T] may be spelt as


def import_blobgpt(
    checkpoint: str | Path,
    *,
    pca: str | Path | None = None,
    data: Group | Mapping[str, Any] | Sequence[Any] | None = None,
    subjects: Sequence[str] | None = None,
    trunk: str = TRUNK,
    layers: Sequence[int] = LAYERS,
    trunk_weights: str | Path | None = None,
    images: Sequence[Any] | None = None,
) -> GroupEncoder:
    """A checkpoint of BlobGPT's public code as an encoder that answers as that code does.

    checkpoint: torch file {"epoch", "metric", "trunk", "encoder"}, read without unpickling. After
        phase 1 its trunk is None: then the trunk is timm's published one, or `trunk_weights`
    pca: torch file {"weight" [V,R or more], "bias" [V]}, of which the first R components count;
        needed where the checkpoint has no embedding, and compared with it where it has one
    data: the data sets whose vertices the answers are for. The public code orders the union of
        all subjects' vertices left hemisphere first, by increasing index on fsaverage, so the data
        sets given must have all V vertices between them, as subject 1 of Algonauts has alone. Only
        their subjects are kept. Without data all subjects answer for V columns on no mesh
    subjects: names of the S subject maps in the checkpoint's order; subj01, subj02, ... without
    layers: blocks of the trunk, one a feature projection
    images: a few, for the golden responses; noise without

    The mean of the PCA counts twice in a subject's prediction, as in the public code. That code
    shrinks an image in two steps, to 256 and then to 224 pixels; here it is one. Which images a
    checkpoint was trained on is not known, so scores on training images may be of those.

    Raises BrainfastError for a file that is damaged or of another layout, an array that is
    missing, has another shape or is not finite, and vertices or names that do not fit.
    """
    path = Path(checkpoint)
    epoch, tuned, arrays = _read(path)
    R, K = _sizes(path, arrays, "shared_proj.weight", 2)
    names = _subject_names(path, _sizes(path, arrays, "subj_proj.fc.weight", 2)[0], R, subjects)
    embedding = _embedding(path, arrays, None if pca is None else Path(pca), R)
    group = data if isinstance(data, Group) or data is None else Group(data)
    spaces, space = _spaces(group, names, len(embedding[1]))
    made = _make_trunk(path, tuned, trunk, layers, trunk_weights)
    config = BlobGPTConfig(
        subjects=tuple(spaces),
        grids=made.grids,
        class_token=made.class_token,
        latent=K,
        components=R,
        pca_mean="twice",
    )
    head = _make_head(path, arrays, made, config, names, embedding)
    encoder = GroupEncoder.assemble(
        model="blobgpt",
        trunk=made,
        head=head,
        spaces=spaces,
        space=space,
        images=_noise(made) if images is None else images,
        training=_training_card(path, epoch),
        visual_angle_deg=None if group is None else group.visual_angle_deg,
    )
    encoder.card = encoder.card.model_copy(update={"citation": CITATION})
    return encoder


def _read(path: Path) -> tuple[int, Any, dict[str, Any]]:
    """Epoch, the trunk's state dict or None, and the head's."""
    state = read_torch_tensors(path, keys=("epoch", "trunk", "encoder"))
    epoch, arrays = state.get("epoch"), state.get("encoder")
    if type(epoch) is not int or epoch < 0 or not isinstance(arrays, dict) or "trunk" not in state:
        found = [f"{key} {type(value).__name__}" for key, value in state.items()]
        raise BrainfastError(
            str(path),
            expected="epoch, trunk and encoder, as BlobGPT's public code saves them",
            got=", ".join(found) or "none of them",
        )
    return epoch, state["trunk"], _strip(arrays)


def _strip(arrays: Mapping[Any, Any]) -> dict[str, Any]:
    """Names without what wrappers such as DataParallel and torch.compile put before them."""
    stripped = {}
    for name, value in arrays.items():
        name = str(name)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        stripped[name] = value
    return stripped


def _sizes(path: Path, arrays: Mapping[str, Any], name: str, dims: int) -> tuple[int, ...]:
    value = arrays.get(name)
    if not isinstance(value, torch.Tensor) or value.ndim != dims or not value.numel():
        raise BrainfastError(
            f"{path}: encoder",
            expected=f"{name} with {dims} axes",
            got=str(list(value.shape)) if isinstance(value, torch.Tensor) else "none",
            remedy="give a checkpoint of BlobGPT's public code",
        )
    return tuple(value.shape)


def _subject_names(
    path: Path, rows: int, components: int, subjects: Sequence[str] | None
) -> list[str]:
    if rows % components:
        raise BrainfastError(
            f"{path}: encoder",
            expected=f"subj_proj.fc.weight with a multiple of {components} rows",
            got=str(rows),
        )
    count = rows // components
    names = [f"subj{i + 1:02d}" for i in range(count)] if subjects is None else list(subjects)
    if len(names) != count or len(set(names)) < count:
        raise BrainfastError(
            "subjects",
            expected=f"{count} different names, in the order of the checkpoint's subject maps",
            got=", ".join(names) or "none",
        )
    return names


def _embedding(
    path: Path, arrays: dict[str, Any], pca: Path | None, components: int
) -> tuple[torch.Tensor, torch.Tensor]:  # [V,R], [V]
    """Takes `embed.*` out of `arrays`; where the PCA file is given too, they must be equal."""
    own = {n: arrays.pop(f"embed.{n}") for n in ("weight", "bias") if f"embed.{n}" in arrays}
    found = None if pca is None else _checked_embedding(pca, read_torch_tensors(pca), components)
    if not own:
        if found is None:
            raise BrainfastError(
                str(path),
                expected="embed.weight and embed.bias",
                got="neither",
                remedy="give the file of the PCA (--pca FILE)",
            )
        return found
    kept = _checked_embedding(path, own, components)
    if found is not None:
        _check_equal(path, kept, found)
    return kept


def _checked_embedding(
    path: Path, arrays: Mapping[Any, Any], components: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
        raise BrainfastError(
            str(path),
            expected="the embedding's weight and bias",
            got=", ".join(str(name) for name in list(arrays)[:8]) or "nothing",
        )
    shapes = bias.ndim == 1 and weight.ndim == 2 and weight.shape[0] == len(bias) > 0
    if not shapes or weight.shape[1] < components:
        raise BrainfastError(
            str(path),
            expected=f"an embedding weight [V,{components} or more] and bias [V]",
            got=f"{list(weight.shape)} and {list(bias.shape)}",
        )
    pair = weight[:, :components].float().contiguous(), bias.float()
    _check_numbers(path, {"weight of the embedding": pair[0], "bias of the embedding": pair[1]})
    return pair


def _check_equal(
    path: Path, own: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for name, mine, theirs in zip(("weight", "bias"), own, other, strict=True):
        if not torch.equal(mine, theirs):
            got = f"{list(theirs.shape)} for {list(mine.shape)}"
            if mine.shape == theirs.shape:
                got = f"a difference of up to {float((mine - theirs).abs().max()):.3g}"
            raise BrainfastError(
                "pca",
                expected=f"the embedding {name} of {path}",
                got=got,
                remedy="give the file that the checkpoint was trained with, or none",
            )


def _spaces(
    group: Group | None, names: Sequence[str], V: int
) -> tuple[dict[str, VertexSpace], VertexSpace]:
    """Vertices of the subjects kept, in the order of the checkpoint, and their union."""
    if group is None:
        whole = VertexSpace("custom", np.arange(V), np.arange(0))
        return dict.fromkeys(names, whole), whole
    unknown = [name for name in group.subjects if name not in names]
    if unknown:
        raise BrainfastError(
            f"subject {unknown[0]}",
            expected=f"one of the checkpoint's: {', '.join(names)}",
            got="another",
            remedy="name the checkpoint's subjects in their order (--subjects A,B,...)",
        )
    if group.space.V != V:
        raise BrainfastError(
            "data",
            expected=f"subjects with the {V} vertices of the checkpoint between them",
            got=f"{group.space.V} vertices of {', '.join(group.subjects)}",
            remedy="add a subject that has them all, such as subj01, or give no data",
        )
    return {name: group.spaces[name] for name in names if name in group.spaces}, group.space


def _make_trunk(
    path: Path,
    state: Any,
    name: str,
    layers: Sequence[int],
    weights: str | Path | None,
) -> Trunk:
    if state is None:
        return Trunk.create(name, layers=layers, weights=weights)
    if not isinstance(state, dict) or weights is not None:
        got = "another too" if weights is not None else f"a trunk {type(state).__name__}"
        raise BrainfastError(str(path), expected="one trunk, that of the checkpoint", got=got)
    trunk = Trunk.create(name, layers=layers, pretrained=False)
    arrays = {n: value for n, value in _strip(state).items() if isinstance(value, torch.Tensor)}
    load_weights(trunk.model, arrays, f"{path}: trunk")
    _check_numbers(path, trunk.model.state_dict())
    return Trunk(trunk.model, trunk.current_config())


def _make_head(
    path: Path,
    arrays: Mapping[str, Any],
    trunk: Trunk,
    config: BlobGPTConfig,
    names: Sequence[str],
    embedding: tuple[torch.Tensor, torch.Tensor],
) -> BlobGPT:
    """The head with the maps of `config.subjects`, who are some of `names`."""
    taken = _take(path, arrays, list(_layout(trunk, config, len(names))))
    kept = [names.index(name) for name in config.subjects]
    for name in ("subject_weight", "subject_bias"):
        maps = taken[name].reshape(len(names), config.components, *taken[name].shape[1:])
        taken[name] = maps[kept]
    with torch.random.fork_rng(devices=[]):
        head = BlobGPT(trunk.config.channels, trunk.config.layers, config, *embedding)
    head.load_state_dict(taken)
    return head


def _layout(trunk: Trunk, config: BlobGPTConfig, subjects: int) -> Iterator[_Entry]:
    R, K = config.components, config.latent
    for i, (C, T, grid) in enumerate(
        zip(trunk.config.channels, config.tokens, config.grids, strict=True)
    ):
        theirs = f"feat_projs.{i}"
        spelt = None if config.class_token else grid
        yield _Entry(f"{theirs}.proj.weight1", f"maps.{i}", (K, T), spelt)
        yield _Entry(f"{theirs}.proj.weight2", f"filters.{i}", (K, C))
        for name in NORM:
            shape = () if name == "num_batches_tracked" else (K,)
            yield _Entry(f"{theirs}.norm.{name}", f"norms.{i}.{name}", shape)
    yield _Entry("shared_proj.weight", "shared", (R, K))
    yield _Entry("subj_proj.fc.weight", "subject_weight", (subjects * R, K))
    yield _Entry("subj_proj.fc.bias", "subject_bias", (subjects * R,))


def _take(
    path: Path, arrays: Mapping[str, Any], entries: Sequence[_Entry]
) -> dict[str, torch.Tensor]:
    """The arrays under our names; one that is missing, or that we would leave out, is an error."""
    names = [entry.theirs for entry in entries]
    missing = [name for name in names if not isinstance(arrays.get(name), torch.Tensor)]
    extra = [name for name in arrays if name not in names]
    if missing or extra:
        kind, some = ("missing", missing) if missing else ("unknown", extra)
        raise BrainfastError(
            f"{path}: encoder",
            expected=f"the {len(names)} arrays of BlobGPT's head for these layers",
            got=f"{len(some)} {kind}: {', '.join(some[:4])}",
            remedy="name the layers that it was trained on, one a feature projection",
        )
    taken = {entry.ours: _fitted(path, entry, arrays[entry.theirs]) for entry in entries}
    _check_numbers(path, {entry.theirs: taken[entry.ours] for entry in entries})
    return taken


def _fitted(path: Path, entry: _Entry, tensor: torch.Tensor) -> torch.Tensor:
    """An array in our shape; axes of length 1 may be anywhere but before the first."""
    first = entry.shape[:1]
    spelt = [entry.shape] if entry.grid is None else [entry.shape, (*first, *entry.grid)]
    shape = tuple(tensor.shape)
    if shape[:1] != first or _long(shape) not in [_long(known) for known in spelt]:
        raise BrainfastError(
            f"{path}: {entry.theirs}",
            expected=" or ".join(str(list(known)) for known in spelt),
            got=str(list(shape)),
            remedy="name the trunk and the layers that it was trained on",
        )
    return tensor.reshape(entry.shape)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape[1:] if side != 1)


def _check_numbers(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in arrays.items():
        negative = name.endswith("running_var") and bool((tensor < 0).any())
        if negative or not bool(torch.isfinite(tensor).all()):
            raise BrainfastError(
                f"{path}: {name}",
                expected="variances of 0 or more" if negative else "finite numbers",
                got="others",
                remedy="copy or download it again",
            )


def _noise(trunk: Trunk) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    shape = (GOLDEN_IMAGES, *trunk.preprocessing.size, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _training_card(path: Path, epoch: int) -> TrainingCard:
    """What is known of the training: the file, and its epoch, which stands for the steps."""
    return TrainingCard(
        recipe={"imported": path.name, "sha256": hash_file(path), "counts": "epochs from 0"},
        split_hash=None,
        split_hashes={},
        images={},
        seed=0,
        steps=epoch,
        best_step=epoch,
        torch_version="not known",
    )
