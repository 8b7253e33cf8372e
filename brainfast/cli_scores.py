"""`brainfast evaluate`: scores of one subject or of several, printed and kept with the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

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
    open_data,
    open_group,
)
from .errors import BrainfastError
from .score_table import group_lines, group_values, score_lines, score_values


def evaluate(
    model: ModelFolder,
    data: DataFolders,
    split: PartOption = Part.heldout,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
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
        evaluate_group(encoder, group, split.value, model, as_json=as_json, progress=not quiet)
        return
    if len(data) > 1:
        raise BrainfastError("data", expected="the subject of the model", got=f"{len(data)}")
    subject = open_data(data[0], Surface.inflated, None, ncsnr, groups, seed)
    chosen = getattr(subject, split.value)
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
    print_scores(scores, subject.space, as_json)


def evaluate_group(
    encoder: Any, group: Any, split: str, folder: Path, *, as_json: bool, progress: bool
) -> None:
    """Score every subject of a group, print it, and keep it in the model folder."""
    parts = {name: _part(group, split, name) for name in group.subjects}
    scores = {name: encoder.evaluate(part, name, progress=progress) for name, part in parts.items()}
    for name, found in scores.items():
        found.save(folder / "scores" / split / name)
    encoder.card.write(folder)
    if as_json:
        typer.echo(json.dumps(group_values(scores, group.spaces), indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(group_lines(scores, group.spaces)))


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
