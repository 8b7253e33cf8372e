"""What encoders of one and of several subjects do alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .analysis.scores import ScoreAccumulator, Scores
from .card import ScoreCard, SpaceCard
from .data.splits import Split
from .engine import ONNX_DEVICES, ONNX_FILE
from .errors import BrainfastError
from .files import hash_arrays
from .images import as_images
from .runtimes import OnnxRuntime, TrunkRuntime, open_trunk
from .trunk_export import export_trunk
from .trunks import Trunk
from .vertex_space import VertexSpace

MODEL_FILE = "model.safetensors"
GOLDEN_VERTICES = 64


def compile_trunk(
    trunk: Trunk,
    runtime: str,
    device: str,
    precision: Literal["fp32", "bf16"],
    folder: str | Path | None,
    threads: int | None,
) -> TrunkRuntime:
    """A runtime over a trunk in memory; "onnx" writes `trunk.onnx` into `folder` if need be."""
    if runtime in ("torch", "compile"):
        return open_trunk(trunk, runtime, precision, device)
    if runtime != "onnx":
        raise BrainfastError("runtime", expected="torch, compile or onnx", got=repr(runtime))
    if folder is None or precision != "fp32" or device not in ONNX_DEVICES:
        raise BrainfastError(
            "runtime onnx",
            expected="a folder for trunk.onnx, trunk_precision fp32, the CPU or cuda",
            got=f"folder {folder}, {precision} on {device}",
            remedy="use runtime='torch'",
        )
    path = Path(folder) / ONNX_FILE
    if not path.is_file():
        export_trunk(trunk, path)
    config = trunk.config
    return OnnxRuntime(
        path,
        config.layers,
        threads=threads,
        weights_hash=config.weights_hash,
        device="cuda" if device == "cuda" else "cpu",
    )


def score_split(
    predicted: Iterable[NDArray[np.float32]],  # [b,V] of the split's images, in order
    split: Split,
    model_hash: str,
    *,
    progress: bool,
) -> Scores:
    """Scores of one split, per vertex over the trials that measured it, with its noise ceiling;
    one without responses is an error."""
    if split.responses is None:
        raise BrainfastError(
            f"the {split.name} split",
            expected="measured responses",
            got="none",
            remedy="evaluate the heldout split, or add the organisers' files",
        )
    accumulator, start = ScoreAccumulator(), 0
    bar = tqdm(total=len(split.images), desc="scoring", unit="image", disable=not progress)
    with bar:
        for part in predicted:
            stop = start + len(part)
            accumulator.update(part, split.responses[np.arange(start, stop)])
            bar.update(stop - start)
            start = stop
    return accumulator.scores(
        split.ceiling,
        reason=split.ceiling_reason,
        split_hash=split.hash,
        model_hash=model_hash,
    )


def check_split(split: Split, space: VertexSpace, known_hash: str) -> None:
    """Refuse another subject's images, and a split that holds images trained on."""
    mine, other = space.subject, split.space.subject
    if split.space != space or (None not in (mine, other) and mine != other):
        raise BrainfastError(
            f"the {split.name} split",
            expected=f"the {space.V} vertices of {mine}, which the model was trained on",
            got=f"{split.space.V} vertices of {other}",
            remedy="a model answers for the vertices of its subjects",
        )
    if known_hash != split.hash:
        raise BrainfastError(
            f"the {split.name} split",
            expected="the split that the model was trained with",
            got="another one, so that training images could be scored",
            remedy="give the same images, groups and seed as in training",
        )


def score_card(split: str, scores: Scores, subject: str | None = None) -> ScoreCard:
    """Means over vertices, as they stand in the card."""
    summary = scores.summary()

    def known(name: str) -> float | None:
        return summary[name] if math.isfinite(summary[name]) else None

    return ScoreCard(
        split=split,
        split_hash=scores.split_hash,
        images=scores.n,
        subject=subject,
        r2_mean=known("r2_mean"),
        r2_median=known("r2_median"),
        r_mean=known("r_mean"),
        challenge_mean=known("normalised_mean"),
        challenge_median=known("normalised_median"),
        ceiling_mean=known("ceiling_mean"),
        reason=scores.reason,
    )


def space_card(
    space: VertexSpace,
    *,
    visual_angle_deg: float | None,
    surface: str | None = None,
    coordinates_hash: str | None = None,
) -> SpaceCard:
    """The vertices of a model or a subject, as they stand in the card."""
    _, about = space.to_arrays()
    return SpaceCard(
        vertices=space.V,
        surface=surface,
        coordinates_hash=coordinates_hash,
        visual_angle_deg=visual_angle_deg,
        **about,
    )


def model_hash(
    arrays: Mapping[str, NDArray[Any]], trunk: Trunk, space: VertexSpace, options: Sequence[Any]
) -> str:
    """SHA-256 over all that a response depends on."""
    rest: list[Any] = [
        trunk.config.weights_hash,
        trunk.preprocessing.model_dump(mode="json"),
        space.hash(),
        *options,
    ]
    return hash_arrays({**arrays, json.dumps(rest): np.zeros(0)})


def golden_images(trunk: Trunk, images: Sequence[Any]) -> NDArray[np.uint8]:  # [n,H,W,3]
    """Images at the trunk's size, small enough to travel with the model."""
    height, width = trunk.preprocessing.size
    small = [
        np.asarray(Image.fromarray(image).resize((width, height)))
        for image in as_images(list(images))
    ]
    return np.stack(small)
