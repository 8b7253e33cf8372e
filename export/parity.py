"""An exported file beside the float64 twin, on real pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..card import ParityCard
from ..errors import BrainfastError
from ..group_encoder import GroupEncoder
from ..images import preprocess
from ..parity import parity_card, twin
from ..parity_table import heldout, measured_responses
from .about import TrunkPrecision
from .pictures import photographs, to_size
from .plan import Plan

# Largest error of a response in standard deviations, where the user names none. Trunks in half
# precision differ by what their operands are rounded to.
TOLERANCE: dict[TrunkPrecision, float] = {"fp32": 1e-3, "fp16": 6e-2, "bf16": 0.5}
BATCH = 8

# Inputs [B,...] -> the outputs of the plan in order, then the pixels where the graph makes them.
Run = Callable[[NDArray[Any]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True)
class Stimuli:
    """Pictures of the size that the file takes, and measured responses [N,V], where known."""

    images: Sequence[Any]
    measured: NDArray[np.float32] | None = None


@dataclass
class _Seen:
    """Of one output: what was found, and what should have been."""

    found: list[NDArray[np.float32]] = field(default_factory=list)
    expected: list[NDArray[np.float64]] = field(default_factory=list)


def choose_stimuli(plan: Plan, images: Sequence[Any] | None, data: Path | None) -> Stimuli:
    """The images given, or a subject's heldout split; else golden images and photographs."""
    if images is not None and data is not None:
        raise BrainfastError("export", expected="images or data", got="both")
    if data is not None:
        split = heldout(plan.encoder, data)
        subject = split.space.subject if isinstance(plan.encoder, GroupEncoder) else None
        if [answer.subject for answer in plan.answers] != [subject]:
            raise BrainfastError(
                str(data),
                expected="data of the one subject that is exported",
                got=f"{split.space.subject} for {len(plan.answers)} subjects",
                remedy="name the subject, or give images",
            )
        return Stimuli(split.images, measured_responses(split, data))
    if images is not None:
        if len(images) == 0:
            raise BrainfastError("images", expected="at least one", got="none")
        return Stimuli(images)
    return Stimuli([*_golden(plan), *photographs()])


def measure(
    plan: Plan,
    run: Run,
    stimuli: Stimuli,
    *,
    source: tuple[int, int] | None,
    form: tuple[str, str, str],  # what ran, precision of trunk and head
    progress: bool = False,
) -> list[ParityCard]:
    """One card an output. Pictures are squashed to `source`, where the file has one.

    Errors are in standard deviations of the response, of an objective in those of its scores.
    """
    seen = [_Seen() for _ in plan.answers]
    differ: int | None = None
    settings = plan.encoder.trunk.preprocessing
    for batch in _batches(stimuli.images, progress):
        pictures = to_size(batch, source)
        pixels = preprocess(pictures, settings)
        outputs = list(run(pixels if source is None else np.stack(pictures)))
        if len(outputs) > len(seen):
            differ = (differ or 0) + int((outputs.pop() != pixels).sum())
        twins = _twins(plan, pictures)
        for one, output, expected in zip(seen, outputs, twins, strict=True):
            one.found.append(output)
            one.expected.append(expected)
    cards = []
    for one, answer in zip(seen, plan.answers, strict=True):
        measured = None
        found, expected = np.concatenate(one.found), np.concatenate(one.expected)
        if answer.weights is not None:
            found, expected = _in_own_units(found, expected)
        elif stimuli.measured is not None:
            measured = stimuli.measured[:, answer.columns]
        card = parity_card(form, found, expected, measured)
        update = {"subject": answer.subject, "pixels_differ": differ}
        cards.append(card.model_copy(update=update))
    return cards


def check_tolerance(cards: Sequence[ParityCard], tolerance: float) -> None:
    """A drift over the tolerance is a BrainfastError."""
    worst = max(cards, key=lambda card: card.max_error)
    if not worst.max_error <= tolerance:
        raise BrainfastError(
            worst.form,
            expected=f"errors of at most {tolerance:g} standard deviations of the response",
            got=f"{worst.max_error:.2g}",
            remedy="export the trunk in a higher precision, or raise --tolerance",
        )


def _in_own_units(
    found: NDArray[np.float32],  # [B,O]
    expected: NDArray[np.float64],  # [B,O]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scores less their mean over images, in their standard deviation: objectives have units of
    their own, and a large one would hide the errors of a small one."""
    mean, spread = expected.mean(axis=0), expected.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = ((found - mean) / spread).astype(np.float32)
    return scaled, (expected - mean) / spread


def _golden(plan: Plan) -> list[NDArray[np.uint8]]:
    encoder = plan.encoder
    if isinstance(encoder, GroupEncoder):
        return list(next(iter(encoder.goldens.values())).images)
    return list(encoder.golden.images)


def _batches(images: Sequence[Any], progress: bool) -> Iterator[list[Any]]:
    with tqdm(total=len(images), desc="parity", unit="image", disable=not progress) as bar:
        for start in range(0, len(images), BATCH):
            batch = [images[i] for i in range(start, min(start + BATCH, len(images)))]
            yield batch
            bar.update(len(batch))


def _twins(plan: Plan, pictures: list[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
    """What every output should be."""
    encoder = plan.encoder
    if isinstance(encoder, GroupEncoder):
        found = encoder.twins(pictures, [str(answer.subject) for answer in plan.answers])
        return [a.expected(found[str(a.subject)][:, a.columns]) for a in plan.answers]
    answer = plan.answers[0]
    return [answer.expected(twin(encoder.trunk, encoder.head, pictures, answer.columns))]
