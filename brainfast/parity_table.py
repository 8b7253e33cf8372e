"""Every way in which this machine can run a saved model, beside the float64 twin: a table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from .analysis.scores import r2
from .card import ParityCard
from .data import Algonauts, Group, Split
from .encoder import Encoder, load
from .encoder_parts import check_split, compile_trunk
from .engine import ONNX_FILE
from .errors import BrainfastError
from .folded import PRECISIONS
from .folded_blobgpt import GROUP
from .group_encoder import GroupEncoder
from .heads import FoldedHead
from .images import iter_pixels
from .parity import parity_card
from .runtimes import Precision, TrunkRuntime
from .vertex_space import VertexSpace

# Trunk runtimes with the precisions that they have. Opened one after the other on the CPU.
RUNTIMES: tuple[tuple[str, Precision], ...] = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("compile", "fp32"),
    ("compile", "bf16"),
    ("onnx", "fp32"),
)
BATCH = 8
HEADINGS = (
    ("trunk", 9),
    ("", 6),
    ("head", 8),
    ("max error", 11),
    ("rms error", 11),
    ("worst region", 22),
    ("R2 change", 11),
    ("its mean", 11),
)


@dataclass(frozen=True)
class ParityRow:
    """One form beside the twin; errors are in standard deviations of the twin's responses.

    worst_region, worst_region_rms: the region with the largest rms error, where there are regions.
    r2_change_mean: mean over vertices of R2(form) - R2(twin), where measured responses are given;
    `card.r2_change` is the largest change of a vertex.
    """

    card: ParityCard
    worst_region: str | None
    worst_region_rms: float | None
    r2_change_mean: float | None


@dataclass(frozen=True)
class Stimuli:
    """Images and the twin's responses to them, measured ones too where they are known.

    expected: [N,V_s] of every subject, "group" among them; of None for a model of one subject.
    measured: [N,V_s], of the only one of `expected`.
    """

    images: Any
    expected: Mapping[str | None, NDArray[np.float64]]
    measured: NDArray[np.float32] | None = None


def run_parity(
    model: Path, images: Sequence[Path] | None, data: Path | None, as_json: bool
) -> None:
    """Print the parity of every form of a saved model, and write it into the model's card.

    images: image files; data: an Algonauts subject's folder, whose heldout split gives images and
    measured responses; without either, the model's golden images. A model of several subjects has
    a row for each and for "group", from the same tokens; with data, for that subject alone.
    The twin takes seconds an image at full size. A form that this machine cannot run is named
    with the reason.
    """
    if images is not None and data is not None:
        raise BrainfastError("bench --parity", expected="--images or --data", got="both")
    encoder = load(model)
    stimuli = _stimuli(encoder, images, data)
    rows, missing = parity_rows(encoder, stimuli, folder=model)
    for row in rows:
        encoder.keep_parity(row.card)
    encoder.card.write(model)
    if as_json:
        values = {"rows": [_values(row) for row in rows], "not_run": missing}
        typer.echo(json.dumps(values, indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(parity_lines(rows, missing)))


def parity_rows(
    encoder: Encoder | GroupEncoder, stimuli: Stimuli, folder: Path | None = None
) -> tuple[list[ParityRow], dict[str, str]]:
    """A row for every form that runs here, and the reason of every runtime that does not.

    Of a model of several subjects: a row for every form and subject of `stimuli.expected`.
    folder: of the saved model, where `trunk.onnx` may lie; else the trunk is exported for the time.
    """
    rows: list[ParityRow] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as made:
        exported = folder is not None and (folder / ONNX_FILE).is_file()
        place = folder if exported else Path(made)
        for name, precision in RUNTIMES:
            try:
                runtime = compile_trunk(encoder.trunk, name, "cpu", precision, place, None)
            except BrainfastError as error:
                missing[f"{name} {precision}"] = str(error)
                continue
            rows += _rows_of(encoder, runtime, stimuli)
    return rows, missing


def parity_lines(rows: list[ParityRow], missing: dict[str, str]) -> list[str]:
    """The table as text, then what was not run."""
    named = [row.card.subject for row in rows if row.card.subject is not None]
    width = max(map(len, ("subject", *named))) + 2 if named else 0
    headings = (("subject"[:width], width), *HEADINGS)
    lines = ["".join(f"{name:<{width}}" for name, width in headings).rstrip()]
    for row in rows:
        pairs = zip(_cells(row), headings, strict=True)
        lines.append("".join(f"{cell:<{width}}" for cell, (_, width) in pairs).rstrip())
    if rows:
        lines.append(
            f"{rows[0].card.images} images; errors against float64 in standard deviations of the"
            " response; R2 change: largest of a vertex"
        )
    return lines + [f"not run: {name}: {reason}" for name, reason in missing.items()]


def _cells(row: ParityRow) -> list[str]:
    card = row.card
    return [
        card.subject or "",
        card.form,
        card.trunk_precision,
        card.precision,
        f"{card.max_error:.1e}",
        f"{card.rms_error:.1e}",
        "-" if row.worst_region is None else f"{row.worst_region} {row.worst_region_rms:.1e}",
        "-" if card.r2_change is None else f"{card.r2_change:.1e}",
        "-" if row.r2_change_mean is None else f"{row.r2_change_mean:+.1e}",
    ]


def _stimuli(
    encoder: Encoder | GroupEncoder, images: Sequence[Path] | None, data: Path | None
) -> Stimuli:
    subjects: list[str | None] = [None]
    if isinstance(encoder, GroupEncoder):
        subjects = [*encoder.subjects, GROUP]
        chosen: Any = encoder.goldens[GROUP].images
    else:
        chosen = encoder.golden.images
    measured = None
    if images is not None:
        chosen = images
    if data is not None:
        split = heldout(encoder, data)
        chosen, measured = split.images, measured_responses(split, data)
        subjects = [None if subjects == [None] else split.space.subject]
    parts = []
    with tqdm(total=len(chosen), desc="float64 twin", unit="image", leave=False) as bar:
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            parts.append(_twins(encoder, batch, subjects))
            bar.update(len(batch))
    expected = {name: np.concatenate([part[name] for part in parts]) for name in subjects}
    return Stimuli(chosen, expected, measured)


def _twins(
    encoder: Encoder | GroupEncoder, images: Any, subjects: Sequence[str | None]
) -> dict[str | None, NDArray[np.float64]]:
    if isinstance(encoder, GroupEncoder):
        found = encoder.twins(images, [name for name in subjects if name is not None])
        return dict(found.items())
    return {None: encoder.twin(images)}


def heldout(encoder: Encoder | GroupEncoder, data: Path) -> Split:
    """The part of a subject's folder that training left out, divided as it was there."""
    training = encoder.card.training
    own = Algonauts(data, seed=training.seed if training else 0)
    known = training.split_hashes if training else {}
    split: Split = own.heldout
    if isinstance(encoder, GroupEncoder):
        space = encoder.space_of(own.subject)
        if training:
            split = Group([own], seed=training.seed, **training.data).heldout.of(own.subject)
        check_split(split, space, known.get(f"{split.name}/{own.subject}", split.hash))
    else:
        check_split(split, encoder.space, known.get(split.name, split.hash))
    return split


def measured_responses(split: Split, data: Path) -> NDArray[np.float32]:  # [N,V]
    """The responses to a split's images; a folder without them is a BrainfastError."""
    if split.responses is None:
        raise BrainfastError(str(data), expected="measured responses", got="none")
    return np.asarray(split.responses[np.arange(len(split))], dtype=np.float32)


def _heads(
    encoder: Encoder | GroupEncoder, subjects: Sequence[str | None]
) -> dict[str | None, FoldedHead]:
    """Folded heads, which all align tokens alike."""
    if isinstance(encoder, GroupEncoder):
        found = encoder.fold([name for name in subjects if name is not None])
        return dict(found.items())
    return {None: encoder.fold()}


def _space(encoder: Encoder | GroupEncoder, subject: str | None) -> VertexSpace:
    if isinstance(encoder, GroupEncoder):
        return encoder.space_of(str(subject))
    return encoder.space


def _rows_of(
    encoder: Encoder | GroupEncoder, runtime: TrunkRuntime, stimuli: Stimuli
) -> Iterator[ParityRow]:
    """One row a precision of the head and a subject, on the same tokens."""
    folded = _heads(encoder, list(stimuli.expected))
    heads = [
        {subject: head.with_precision(precision) for subject, head in folded.items()}
        for precision in PRECISIONS
    ]
    found: list[dict[str | None, list[NDArray[np.float32]]]] = [
        {subject: [] for subject in folded} for _ in heads
    ]
    images = stimuli.images
    bar = tqdm(
        total=len(images), desc=f"{runtime.name} {runtime.precision}", unit="image", leave=False
    )
    with bar:
        for pixels in iter_pixels(images, encoder.trunk.preprocessing, BATCH):
            tokens = runtime(pixels)
            for precise, parts in zip(heads, found, strict=True):
                aligned = next(iter(precise.values())).align(tokens)
                for subject, head in precise.items():
                    parts[subject].append(head.readout(aligned))
            bar.update(len(pixels))
    for precision, parts in zip(PRECISIONS, found, strict=True):
        form = (runtime.name, runtime.precision, precision)
        for subject, batches in parts.items():
            space = _space(encoder, subject)
            yield _row(form, np.concatenate(batches), stimuli, space, subject)


def _row(
    form: tuple[str, str, str],
    found: NDArray[np.float32],  # [N,V]
    stimuli: Stimuli,
    space: VertexSpace,
    subject: str | None,
) -> ParityRow:
    expected = stimuli.expected[subject]
    region, region_rms = _worst_region(found, expected, space)
    mean = None
    if stimuli.measured is not None:
        changes = r2(found, stimuli.measured) - r2(expected, stimuli.measured)
        mean = float(np.nanmean(changes)) if np.isfinite(changes).any() else None
    card = parity_card(form, found, expected, stimuli.measured)
    card = card.model_copy(update={"subject": subject})
    return ParityRow(card, region, region_rms, mean)


def _worst_region(
    found: NDArray[np.float32],  # [N,V]
    expected: NDArray[np.float64],  # [N,V]
    space: VertexSpace,
) -> tuple[str | None, float | None]:
    squares = np.square((found - expected) / expected.std()).mean(axis=0)
    inside = {name: space.roi(name) for name in space.roi_names()}
    errors = {name: float(np.sqrt(squares[v].mean())) for name, v in inside.items() if len(v)}
    if not errors:
        return None, None
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


def _values(row: ParityRow) -> dict[str, Any]:
    values = asdict(row)
    del values["card"]
    return row.card.model_dump(mode="json") | values
