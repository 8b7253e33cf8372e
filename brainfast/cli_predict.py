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
    Precision,
    RuntimeName,
    check_outputs,
    check_sole,
    check_submission,
    image_paths,
    names,
)
from .errors import BrainfastError
from .export.opening import is_exported, open_exported


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder, or a file that `export` wrote.")],
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
    if is_exported(model):
        return _respond_from_file(model, paths, subjects, options)
    card = Card.read(model)
    check_sole(card, subjects)
    if not card.subjects:
        from .engine import Engine

        return {"": Engine.load(model, **options).predict(paths)}
    from .group_engine import GroupEngine

    return GroupEngine.load(model, subjects=subjects, **options).predict(paths)


def _respond_from_file(
    path: Path, images: list[Path], subjects: list[str] | None, options: dict[str, Any]
) -> Mapping[str, Any]:
    """What an exported file answers; how it computes was chosen when it was exported."""
    changed = [
        name for name, value in options.items() if value not in _OF_A_FILE.get(name, (None,))
    ]
    if changed or subjects is not None:
        name = (changed or ["subject"])[0].replace("_", "-")
        raise BrainfastError(
            f"--{name}",
            expected="no choice for an exported file, which holds it",
            got=f"one for {path.name}",
            remedy="choose it in `brainfast export`, or give the model folder",
        )
    model = open_exported(path, device=options["device"])
    answers = {about.subject or "": about for about in model.about.outputs}
    if any(about.vertices is None for about in answers.values()):
        raise BrainfastError(
            str(path),
            expected="a file of responses",
            got=model.about.what,
            remedy="use OnnxModel of brainfast.export for scores",
        )
    found = model.predict(images)
    several = len(answers) > 1
    return {subject if several else "": found[about.name] for subject, about in answers.items()}


# Options that an exported file leaves open, or the values that say nothing.
_OF_A_FILE: dict[str, tuple[Any, ...]] = {
    "runtime": ("auto",),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32",),
    "trunk_precision": ("fp32",),
}


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
