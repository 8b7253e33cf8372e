"""`brainfast evaluate`: scores of one subject or of several, printed and kept with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from .card import Card
from .cli_options import (
    DataFolders,
    Groups,
    Json,
    ModelFolder,
    Ncsnr,
    Part,
    PartOption,
    Quiet,
    Surface,
    check_sole,
    names,
    open_data,
    open_group,
    scores_folder,
)
from .errors import BrainfastError
from .folded_blobgpt import GROUP
from .score_table import group_lines, group_values, score_lines, score_values

if TYPE_CHECKING:
    from .analysis.scores import Scores
    from .vertex_space import VertexSpace


class KeptR2(NamedTuple):
    """R2 [V] that `evaluate` kept, the vertices it is of, and what a map of it is called."""

    values: NDArray[np.float64]  # [V]
    space: VertexSpace
    label: str


def evaluate(
    model: ModelFolder,
    data: DataFolders,
    split: PartOption = Part.heldout,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Of a model of several: subj05, or subj01,subj02 (all in DATA). group scores"
            " all of them without subject maps, kept as scores/SPLIT/group/SUBJECT."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model: R2 per vertex and ROI, against the noise ceiling; kept in the model folder."""
    from .encoder import load
    from .group_encoder import GroupEncoder

    encoder = load(model)
    training = encoder.card.training
    seed = training.seed if training else 0
    if isinstance(encoder, GroupEncoder):
        options = (training.data if training else {}) | {"seed": seed}
        group = open_group(data, options, ncsnr=ncsnr, groups=groups)
        evaluate_group(
            encoder,
            group,
            split.value,
            model,
            subjects=names(subject),
            as_json=as_json,
            progress=not quiet,
        )
        return
    check_sole(encoder.card, subject)
    if len(data) > 1:
        raise BrainfastError("data", expected="the subject of the model", got=f"{len(data)}")
    own = open_data(data[0], Surface.inflated, None, ncsnr, groups, seed)
    chosen = getattr(own, split.value)
    if chosen is None:
        raise BrainfastError(
            str(data[0] / "test_split" / "test_images"),
            expected="a folder of images for the challenge split",
            got="no such folder",
            remedy="download this part of the challenge's data",
        )
    scores = encoder.evaluate(chosen, progress=not quiet)
    scores.save(model / "scores" / split.value)
    encoder.card.write(model)
    print_scores(scores, own.space, as_json)


def evaluate_group(
    encoder: Any,
    group: Any,
    split: str,
    folder: Path,
    *,
    subjects: Sequence[str] | None = None,
    as_json: bool,
    progress: bool,
) -> None:
    """Score subjects of a group, all without a choice, print it, and keep it in the model folder.

    subjects: names, or "group" alone: every subject's split without any subject's own map. That is
    called "group/subj01", a name that no subject can have.
    """
    parts = {name: _part(group, split, name) for name in _scored(encoder, group.subjects, subjects)}
    without_maps = list(subjects or ()) == [GROUP]
    scores, spaces = {}, {}
    for name, part in parts.items():
        found = encoder.evaluate(part, GROUP if without_maps else name, progress=progress)
        shown = f"{GROUP}/{name}" if without_maps else name
        scores[shown], spaces[shown] = found, group.spaces[name]
    for shown, found in scores.items():
        found.save(folder / "scores" / split / shown)
    encoder.card.write(folder)
    if as_json:
        typer.echo(json.dumps(group_values(scores, spaces), indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(group_lines(scores, spaces)))


def kept_r2(model: Path, card: Card, split: str, subject: str | None) -> KeptR2:
    """R2 of one split from the model folder.

    subject: None for a model of one subject; else a name; "group/NAME": of the same subject without
    its map; "group": the mean of these over the subjects that have the vertex.
    """
    from .analysis.scores import Scores
    from .engine import read_space

    if card.subjects and subject is None:
        raise BrainfastError(
            "--subject",
            expected=f"one of {', '.join((*card.subjects, GROUP))}",
            got="nothing",
            remedy="name the subject",
        )
    check_sole(card, subject)
    if subject == GROUP:
        return _mean_without_maps(model, card, split)
    owner = None if subject is None else subject.removeprefix(f"{GROUP}/")
    space = read_space(model, card, owner)
    if owner != subject:
        scores = _without_maps(model, split, [str(owner)])[str(owner)]
        return KeptR2(scores.r2, space, f"R2 without subject maps, {split}")
    return KeptR2(Scores.load(scores_folder(model, split, subject)).r2, space, f"R2, {split}")


def print_scores(scores: Any, space: Any, as_json: bool = False) -> None:
    """One subject's scores, as a table or as JSON."""
    if as_json:
        typer.echo(json.dumps(score_values(scores, space), indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(score_lines(scores, space)))


def _part(group: Any, split: str, subject: str) -> Any:
    if split == Part.challenge.value:
        part = group.data[subject].challenge
        if part is None:
            raise BrainfastError(
                f"challenge split of {subject}",
                expected="test images",
                got="none",
                remedy="download this part of the challenge's data",
            )
        return part
    return getattr(group, split).of(subject)


def _scored(encoder: Any, given: Sequence[str], subjects: Sequence[str] | None) -> Sequence[str]:
    """Whose splits are scored; names that the data or the model lack are errors."""
    if subjects is not None and list(subjects) == [GROUP]:
        return given
    chosen = given if subjects is None else subjects
    for name in chosen:
        if name not in given:
            raise BrainfastError(
                "--subject", expected=f"some of {', '.join(given)}, or group alone", got=repr(name)
            )
        encoder.space_of(name)
    return chosen


def _mean_without_maps(model: Path, card: Card, split: str) -> KeptR2:
    from .engine import read_space

    space = read_space(model, card, GROUP)
    kept = _without_maps(model, split, list(card.subjects))
    total, count = np.zeros(space.V), np.zeros(space.V)
    for name, scores in kept.items():
        columns = space.positions(read_space(model, card, name))
        known = np.isfinite(scores.r2)
        total[columns[known]] += scores.r2[known]
        count[columns[known]] += 1
    mean = total / np.where(count > 0, count, np.nan)
    return KeptR2(mean, space, f"R2 without subject maps, mean of {len(kept)} subjects, {split}")


def _without_maps(model: Path, split: str, subjects: Sequence[str]) -> dict[str, Scores]:
    """What was kept of `evaluate --subject group`; none at all is an error."""
    from .analysis.scores import Scores

    folder = model / "scores" / split / GROUP
    kept = [name for name in subjects if (folder / name / "scores.json").is_file()]
    if not kept:
        raise BrainfastError(
            str(folder),
            expected=f"scores of the {split} split without subject maps",
            got="none yet",
            remedy=f"run 'brainfast evaluate {model} DATA --split {split} --subject group' first",
        )
    return {name: Scores.load(folder / name) for name in kept}
