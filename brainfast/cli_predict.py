"""`brainfast predict`: images to responses through the compiled engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .card import Card
from .cli_options import (
    Device,
    HeadPrecision,
    Json,
    ModelFolder,
    Precision,
    RuntimeName,
    check_outputs,
    check_sole,
    check_submission,
    image_paths,
    names,
)


def predict(
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    subject: Annotated[
        str | None,
        typer.Option(help="Of a model of several: subj05, or subj01,subj02, or group (all)."),
    ] = None,
    vertices: Annotated[str | None, typer.Option(help="ROIs, e.g. FFA,PPA (all).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for one GIFTI file a hemisphere and image.")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write an Algonauts submission zip of all images.")
    ] = None,
    precision: Annotated[HeadPrecision, typer.Option(help="Of the head.")] = HeadPrecision.fp32,
    trunk_precision: Annotated[Precision, typer.Option(help="Of the trunk.")] = Precision.fp32,
    runtime: Annotated[RuntimeName, typer.Option(help="Of the trunk.")] = RuntimeName.auto,
    device: Annotated[Device, typer.Option(help="Of the trunk.")] = Device.auto,
    as_json: Json = False,
) -> None:
    """Predict responses through the compiled engine; prints the mean of every ROI in z units."""
    paths = image_paths(images)
    regions = names(vertices)
    if out is not None:
        check_outputs(out, paths)
    if submission is not None:
        check_submission(submission)
    options = {
        "runtime": runtime.value,
        "device": device.value,
        "precision": precision.value,
        "trunk_precision": trunk_precision.value,
        "vertices": regions,
    }
    responses = _respond(model, paths, names(subject), options)
    if out is not None:
        _save(responses, paths, out)
    if submission is not None:
        from .data import write_submission

        write_submission(
            submission, {name or r.space.subject or "subject": r for name, r in responses.items()}
        )
    means = {name: _means(response, paths, regions) for name, response in responses.items()}
    if as_json:
        typer.echo(json.dumps(means.get("", means), indent=2))
        return
    for name, found in means.items():
        for image, answers in found.items():
            listed = "  ".join(f"{roi} {value:+.2f}" for roi, value in answers.items())
            listed = listed or f"{responses[name].space.V} vertices"
            typer.echo(f"{name}{' ' if name else ''}{image}: {listed}")


def _respond(
    model: Path, paths: list[Path], subjects: list[str] | None, options: dict[str, Any]
) -> Mapping[str, Any]:
    """A Response by subject; under "" where the model has one subject only."""
    card = Card.read(model)
    check_sole(card, subjects)
    if not card.subjects:
        from .engine import Engine

        return {"": Engine.load(model, **options).predict(paths)}
    from .group_engine import GroupEngine

    return GroupEngine.load(model, subjects=subjects, **options).predict(paths)


def _save(responses: Mapping[str, Any], paths: list[Path], out: Path) -> None:
    for name, response in responses.items():
        folder = out / name if len(responses) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        for row, path in enumerate(paths):
            response[row].save(folder / path.stem)


def _means(
    response: Any, paths: list[Path], regions: list[str] | None
) -> dict[str, dict[str, float]]:
    found = regions or response.space.roi_names()
    return {
        str(path): {roi: float(response[row].roi(roi).mean()) for roi in found}
        for row, path in enumerate(paths)
    }
