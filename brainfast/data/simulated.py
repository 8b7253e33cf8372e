"""A simulated subject: known selectors on a real cortical surface, looking at real photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..analysis.scores import noise_ceiling
from ..errors import BrainfastError
from ..files import load_tensors, read_json, save_tensors, write_json
from ..ops.reference import factor_readout
from ..tokens import Tokens
from ..vertex_space import VertexSpace
from .simulated_cortex import smooth_noise, thin, visual_cortex
from .simulated_files import Progress, Stimuli, write_images, write_responses

__all__ = [
    "Planted",
    "Stimuli",
    "plant",
    "recovery",
    "respond",
    "write_images",
    "write_responses",
    "write_subject",
]

Floats: TypeAlias = npt.NDArray[np.float32]

REPEATS = 3  # trials averaged in every response, as in NSD
LAYER_WIDTH = 0.15  # standard deviation of a vertex's layers, of the trunk's depth
LEAST_NOISY, MOST_NOISY = 1.5, 1.0  # ncsnr in V1 and in EBA at noise 1
GLOBAL_SCALE = 0.8  # vertices above it have hardly a position to recover
BATCH = 32


@dataclass(frozen=True, eq=False)
class Planted:
    """What the simulator knows of every vertex, all float32.

    vertices: which vertices, on fsaverage5;  layers: the trunk's, L of them
    space [V,2] x, y in half image widths, y downwards;  layer [V,L];  scale [V];  weight [V,D]
    bottleneck: one [D,C_l] a layer, for local and global tokens alike
    ncsnr [V]: standard deviation of the signal over that of one trial's noise
    """

    vertices: VertexSpace
    layers: tuple[int, ...]
    space: Floats
    layer: Floats
    scale: Floats
    weight: Floats
    bottleneck: tuple[Floats, ...]
    ncsnr: Floats

    @property
    def ceiling(self) -> Floats:
        """Largest share of variance that a model can explain [V], for means of 3 trials."""
        return noise_ceiling(self.ncsnr, n3=1).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write `planted.safetensors` and `planted.json`."""
        spaces, about = self.vertices.to_arrays()
        tensors = {f"vertices.{name}": array for name, array in spaces.items()}
        tensors |= {name: getattr(self, name) for name in _ARRAYS}
        tensors |= {f"bottleneck.{n}": b for n, b in zip(self.layers, self.bottleneck, strict=True)}
        save_tensors(Path(folder) / "planted.safetensors", tensors)
        write_json(Path(folder) / "planted.json", {"vertices": about, "layers": list(self.layers)})

    @staticmethod
    def load(folder: str | Path) -> Planted:
        """Read what `save` wrote."""
        about = read_json(Path(folder) / "planted.json")
        tensors = load_tensors(Path(folder) / "planted.safetensors")
        try:
            layers = tuple(int(layer) for layer in about["layers"])
            spaces = {name: tensors[f"vertices.{name}"] for name in ("lh", "rh", "rois")}
            vertices = VertexSpace.from_arrays(spaces, about["vertices"])
            bottleneck = tuple(tensors[f"bottleneck.{layer}"] for layer in layers)
            arrays = {name: tensors[name] for name in _ARRAYS}
        except (KeyError, TypeError) as error:
            raise BrainfastError(
                str(folder), expected="a simulated subject's planted values", got=f"no {error}"
            ) from error
        return Planted(vertices, layers, bottleneck=bottleneck, **arrays)


_ARRAYS = ("space", "layer", "scale", "weight", "ncsnr")


def plant(
    layers: Sequence[int],
    channels: Sequence[int],
    *,
    dim: int = 32,
    vertices: int | None = None,
    seed: int = 0,
    noise: float = 1.0,
) -> Planted:
    """Selectors that vary smoothly over the cortex, random weights, and noise for every vertex.

    layer: a Gaussian over depth, 0.15 of it wide, around the vertex's place between V1 (first
    layer) and EBA (last); see `simulated_cortex` for space and scale. weight is smooth noise of
    unit variance over D, bottleneck[l] normal(0, 1/C_l).

    channels: C_l of every layer;  dim: D;  vertices: how many, None for the whole visual cortex
    noise: multiplies the noise's standard deviation, above 0
    """
    if not (len(layers) == len(channels) > 0) or dim < 1:
        raise BrainfastError(
            "simulated subject",
            expected="a number of channels for every layer, and dim of at least 1",
            got=f"{len(layers)} layers, {len(channels)} channels, dim {dim}",
        )
    if not (noise > 0 and math.isfinite(noise)):
        raise BrainfastError("noise", expected="a finite number above 0", got=str(noise))
    random = np.random.default_rng(seed)
    cortex = thin(visual_cortex(), vertices)
    depth = max(len(layers) - 1, 1)
    distance = cortex.level[:, None] * depth - np.arange(len(layers))
    layer = np.exp(-0.5 * (distance / (LAYER_WIDTH * depth)) ** 2)
    weight = smooth_noise(cortex.space, random, dim, steps=2)
    weight /= weight.std(axis=1, keepdims=True) if dim > 1 else 1.0
    variation = smooth_noise(cortex.space, random, 1, steps=4)[:, 0]
    ncsnr = LEAST_NOISY + (MOST_NOISY - LEAST_NOISY) * cortex.level
    bottleneck = [random.standard_normal((dim, C)) / math.sqrt(C) for C in channels]
    return Planted(
        vertices=cortex.space,
        layers=tuple(layers),
        space=cortex.position.astype(np.float32),
        layer=(layer / layer.sum(axis=1, keepdims=True)).astype(np.float32),
        scale=cortex.scale.astype(np.float32),
        weight=weight.astype(np.float32),
        bottleneck=tuple(matrix.astype(np.float32) for matrix in bottleneck),
        ncsnr=(ncsnr * np.exp(0.2 * variation) / noise).astype(np.float32),
    )


def respond(
    planted: Planted,
    tokens: Tokens,  # of N images, local [N,C_l,8,8], global [N,C_l]
    train: npt.NDArray[np.int64],  # [n]
    *,
    seed: int = 0,
) -> Floats:
    """Measured responses float32 [N,V] in z units: FactorTopy's equation, and noise.

    y = mean_D(sum_l layer_l ((1-scale) interp(local_l, space) + scale global_l) * weight), z-scored
    a vertex, plus the mean of 3 trials' noise of standard deviation 1/ncsnr, in z units again.
    Tokens are standardised a layer and channel before they are aligned; this and both z-scores
    take their moments from the images `train`.
    """
    signal = _signal(planted, tokens, train)
    signal -= signal[train].mean(axis=0)
    spread = signal[train].std(axis=0)
    if (spread == 0).any():
        raise BrainfastError(
            "simulated responses",
            expected="images and tokens that vary",
            got=f"{(spread == 0).sum()} vertices that never change",
        )
    random = np.random.default_rng([seed, 1])
    noise = random.standard_normal(signal.shape) / (planted.ncsnr * math.sqrt(REPEATS))
    measured = (signal / spread + noise) * np.sqrt(planted.ceiling)
    return np.asarray(measured, dtype=np.float32)


def _signal(
    planted: Planted, tokens: Tokens, train: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The equation without noise or z-score, [N,V]."""
    if tokens.layers != planted.layers:
        raise BrainfastError(
            "tokens", expected=f"layers {planted.layers}", got=f"layers {tokens.layers}"
        )
    rows = torch.from_numpy(train)
    matrices = [torch.from_numpy(matrix) for matrix in planted.bottleneck]
    space, layer, scale, weight = (
        torch.from_numpy(getattr(planted, name)) for name in ("space", "layer", "scale", "weight")
    )
    bias = torch.zeros(planted.vertices.V)
    local = [_standardise(torch.as_tensor(t), rows, (0, 2, 3)) for t in tokens.local]
    summary = [_standardise(torch.as_tensor(t), rows, (0,)) for t in tokens.global_]
    pairs = list(zip(matrices, local, summary, strict=True))
    parts = []
    for start in range(0, tokens.B, BATCH):
        some = slice(start, start + BATCH)
        near = torch.stack([torch.einsum("dc,bchw->bdhw", m, t[some]) for m, t, _ in pairs], 1)
        whole = torch.stack([t[some] @ m.T for m, _, t in pairs], 1)
        y = factor_readout(near, whole, space, layer, scale, weight, bias)
        parts.append(y.double().numpy())
    return np.concatenate(parts)


def _standardise(
    values: torch.Tensor,  # [N,C] or [N,C,H,W]
    rows: torch.Tensor,  # [n]
    axes: tuple[int, ...],
) -> torch.Tensor:
    chosen = values[rows].double()
    mean = chosen.mean(dim=axes, keepdim=True)
    spread = chosen.std(dim=axes, keepdim=True, correction=0).clamp_min(1e-6)
    return ((values - mean) / spread).float()


def write_subject(
    folder: str | Path,
    *,
    trunk_tokens: Callable[[list[Path]], Tokens],
    n_images: int = 560,
    vertices: int | None = None,
    dim: int = 32,
    noise: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Planted:
    """Write a whole simulated subject in the Algonauts 2023 layout, and return what was planted.

    trunk_tokens: paths of N images -> their tokens on the 8x8 grid
    n_images: images of training_split; a tenth as many go to test_split
    progress: called with images written and their number

    Beside the challenge's files lie `simulated.json` (which says that nothing here was measured),
    `groups.csv` (each image's photograph and split) and the planted values.
    """
    folder = Path(folder)
    stimuli = write_images(folder, n_images=n_images, seed=seed, progress=progress)
    tokens = trunk_tokens(stimuli.paths)
    if len(stimuli.paths) != tokens.B:
        raise BrainfastError(
            "trunk_tokens", expected=f"{len(stimuli.paths)} images", got=f"{tokens.B}"
        )
    channels = [int(local.shape[1]) for local in tokens.local]
    planted = plant(tokens.layers, channels, dim=dim, vertices=vertices, seed=seed, noise=noise)
    measured = respond(planted, tokens, stimuli.rows("train"), seed=seed)
    planted.save(folder)
    about: dict[str, Any] = {"seed": seed, "noise": noise, "dim": dim, "repeats": REPEATS}
    write_responses(folder, stimuli, planted.vertices, measured, planted.ceiling, about)
    return planted


def recovery(
    planted: Planted,
    space: npt.NDArray[Any],  # [n,2]
    layer: npt.NDArray[Any],  # [n,L]
    scale: npt.NDArray[Any],  # [n]
    vertices: npt.NDArray[np.int64] | None = None,  # [n]
) -> dict[str, float]:
    """How well a model found what was planted, in the vertices given (columns; all without).

    layer_r: correlation of the layers' centre of mass
    layer_within_one: share of vertices whose strongest layer is at most one off
    space_x_r, space_y_r, space_error: correlation of each axis, and the median distance in half
        image widths, over vertices whose planted scale is below 0.8: above it a response is nearly
        all global and has no position to find
    scale_r: correlation of scale

    A selector that does not vary has correlation 0.
    """
    rows = np.arange(planted.vertices.V) if vertices is None else np.asarray(vertices)
    L = planted.layer.shape[1]
    found = {"space": (space, (2,)), "layer": (layer, (L,)), "scale": (scale, ())}
    for name, (values, tail) in found.items():
        if np.shape(values) != (len(rows), *tail):
            raise BrainfastError(
                name, expected=f"{[len(rows), *tail]}", got=f"{list(np.shape(values))}"
            )
    depth = np.arange(L)
    truth = planted.layer[rows]
    off = np.abs(np.argmax(layer, axis=1) - truth.argmax(axis=1))
    local = planted.scale[rows] < GLOBAL_SCALE
    near, at = np.asarray(space)[local], planted.space[rows][local]
    return {
        "layer_r": _r(np.asarray(layer) @ depth, truth @ depth),
        "layer_within_one": float((off <= 1).mean()),
        "space_x_r": _r(near[:, 0], at[:, 0]),
        "space_y_r": _r(near[:, 1], at[:, 1]),
        "space_error": float(np.median(np.linalg.norm(near - at, axis=1))),
        "scale_r": _r(np.asarray(scale), planted.scale[rows]),
    }


def _r(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    x, y = (np.asarray(values, np.float64) - np.mean(values) for values in (a, b))
    spread = math.sqrt(float((x @ x) * (y @ y)))
    varies = np.ptp(a) > 1e-6 and np.ptp(b) > 1e-6 if len(x) else False
    return float(x @ y) / spread if varies else 0.0
