"""`brainfast train` and `brainfast adapt`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .boundary import resumable
from .card import CARD_FILE
from .cli_options import (
    Coordinates,
    DataFolders,
    Device,
    Groups,
    ModelFolder,
    Ncsnr,
    Precision,
    Quiet,
    Surface,
    numbers,
    open_data,
    open_group,
)
from .cli_scores import evaluate_group, print_scores
from .errors import BrainfastError
from .files import check_replaceable


class SplitKind(StrEnum):
    """How the images of several subjects are divided."""

    by_image = "by_image"
    per_subject = "per_subject"


class Missing(StrEnum):
    """What a vertex is that a subject lacks."""

    mask = "mask"
    zero = "zero"


def train(
    data: DataFolders,
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    model: Annotated[str, typer.Option(help="factortopy, blobgpt or llm-vem.")] = "factortopy",
    trunk: Annotated[
        str | None, typer.Option(help="timm name of the image model (the paper's).")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to read, e.g. 0,2,4.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Trunk weights file, timm's or open_clip's.")
    ] = None,
    random_trunk: Annotated[
        bool, typer.Option("--random-trunk", help="Random trunk weights: for trials only.")
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="paper, demo, or a .json file such as a model's config.json.")
    ] = "paper",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data; factortopy may stop early.")
    ] = None,
    phase: Annotated[int, typer.Option(min=1, max=2, help="1: head, 2: trunk too (blobgpt).")] = 1,
    start: Annotated[
        Path | None, typer.Option("--from", help="Model of phase 1 that phase 2 goes on from.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text embeddings, one vector an image (llm-vem).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the phase (blobgpt).")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images of a step (blobgpt).")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images in memory at a time (blobgpt).")
    ] = None,
    cache_tokens: Annotated[
        bool, typer.Option("--cache-tokens", help="Keep one view's tokens on disk (blobgpt).")
    ] = False,
    split: Annotated[SplitKind, typer.Option(help="Of several subjects.")] = SplitKind.by_image,
    missing: Annotated[Missing, typer.Option(help="Vertices a subject lacks.")] = Missing.mask,
    surface: Annotated[
        Surface | None, typer.Option(help="Of the coordinates (inflated; factortopy).")
    ] = None,
    coordinates: Coordinates = None,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for tokens and checkpoints (OUT.work).")
    ] = None,
    cache_dtype: Annotated[
        Precision | None, typer.Option(help="Of cached tokens (bf16; factortopy).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, initial weights and order.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add trunk.onnx: serves without torch.")
    ] = False,
    licence: Annotated[str | None, typer.Option(help="Of the model, for its card.")] = None,
    citation: Annotated[str | None, typer.Option(help="Of the model, for its card.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on one subject, or one of several; run it again to go on after a stop."""
    out = out.resolve()
    check_replaceable(out, CARD_FILE)
    if random_trunk and weights is not None:
        raise BrainfastError("--weights", expected="no --random-trunk", got="both")
    shared: dict[str, Any] = {
        "pretrained": not random_trunk,
        "trunk_weights": weights,
        "layers": numbers("--layers", layers),
        "work": work or out.with_name(out.name + ".work"),
        "seed": seed,
        "device": device.value,
        "progress": not quiet,
    }
    if trunk is not None:
        shared["trunk"] = trunk
    credit = {"licence": licence, "citation": citation}
    from .models.registry import has_subjects

    if has_subjects(model):
        _refuse(model, coordinates=coordinates, surface=surface, cache_dtype=cache_dtype)
        if steps is not None:
            _refuse(f"{model} without --steps", epochs=epochs)
        if start is not None:
            _refuse(
                f"{model} in phase 1",
                trunk=trunk,
                layers=layers,
                weights=weights,
                random_trunk=random_trunk or None,
            )
        changes = {"steps": steps, "epochs": epochs, "batch": batch, "micro_batch": micro_batch}
        changes["cache_tokens"] = cache_tokens or None
        chosen = _group_recipe(model, phase, recipe, changes)
        group = open_group(
            data,
            {"split": split.value, "missing": missing.value, "seed": seed},
            ncsnr=ncsnr,
            groups=groups,
        )
        _train_group(model, phase, group, out, chosen, start, text, shared, credit, onnx)
        return
    _refuse(
        model,
        phase=None if phase == 1 else phase,
        steps=steps,
        batch=batch,
        text=text,
        micro_batch=micro_batch,
        cache_tokens=cache_tokens or None,
        split=None if split is SplitKind.by_image else split,
        missing=None if missing is Missing.mask else missing,
        **{"from": start},
    )
    if len(data) > 1:
        raise BrainfastError(
            "data", expected=f"one folder for {model}", got=f"{len(data)}", remedy="train each"
        )
    single = _recipe(recipe, epochs)
    subject = open_data(data[0], surface or Surface.inflated, coordinates, ncsnr, groups, seed)
    shared["cache_dtype"] = (cache_dtype or Precision.bf16).value
    _train_one(model, subject, out, single, shared, credit, onnx)


def adapt(
    model: ModelFolder,
    data: Annotated[Path, typer.Argument(help="Algonauts 2023 folder of the new subject.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    trials: Annotated[int | None, typer.Option(min=4, help="Training images to use (all).")] = None,
    sgd_steps: Annotated[int, typer.Option(min=0, help="Gradient steps after the ridge.")] = 0,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
    quiet: Quiet = False,
) -> None:
    """Add a new subject to a model of several: a map of its own in seconds, all else frozen."""
    out = out.resolve()
    check_replaceable(out, CARD_FILE)
    if out == model.resolve():
        raise BrainfastError(
            "--out", expected="another folder than the model's, whose scores would go", got=str(out)
        )
    from .group_encoder import GroupEncoder
    from .training import add_subject

    encoder = GroupEncoder.load(model)
    training = encoder.card.training
    options = (training.data if training else {}) | {"seed": training.seed if training else 0}
    if options.get("split") == SplitKind.per_subject:
        raise BrainfastError(
            str(model),
            expected="a model whose images were split for all subjects at once",
            got="one with a split a subject, which may have trained on any of this one's images",
            remedy="train it with --split by_image",
        )
    group = open_group([data], options, ncsnr=ncsnr, groups=groups)
    (name,) = group.subjects
    train, val, heldout = (part.of(name) for part in (group.train, group.val, group.heldout))
    grown = add_subject(
        encoder,
        name,
        train,
        others=(val, heldout),
        trials=trials,
        sgd_steps=sgd_steps,
        validation=val,
        progress=not quiet,
    )
    grown.save(out)
    scores = grown.evaluate(heldout, name, progress=not quiet)
    scores.save(out / "scores" / "heldout" / name)
    grown.card.write(out)
    print_scores(scores, heldout.space)
    typer.echo(f"model: {out}")


def _recipe(recipe: str, epochs: int | None) -> Any:
    from .training.recipes import find_recipe

    chosen = find_recipe(recipe)
    return chosen if epochs is None else chosen.model_copy(update={"max_epochs": epochs})


def _group_recipe(model: str, phase: int, recipe: str, changes: dict[str, Any]) -> Any:
    from .training.group_recipes import find_group_recipe

    given = {name: value for name, value in changes.items() if value is not None}
    return find_group_recipe(model, phase, recipe).changed(given)


def _train_one(
    model: str,
    subject: Any,
    out: Path,
    recipe: Any,
    shared: dict[str, Any],
    credit: dict[str, str | None],
    onnx: bool,
) -> None:
    from .training import fit

    shared.setdefault("trunk", "vit_base_patch16_clip_224.datacompxl")
    with resumable(_where(shared["work"])):
        encoder = fit(model, subject, recipe=recipe, **shared)
    scores = encoder.evaluate(subject.heldout, progress=shared["progress"])
    encoder.card = encoder.card.credited(**credit)
    encoder.save(out, onnx=onnx)
    scores.save(out / "scores" / "heldout")
    print_scores(scores, subject.space)
    typer.echo(f"model: {out}")


def _train_group(
    model: str,
    phase: int,
    group: Any,
    out: Path,
    recipe: Any,
    start: Path | None,
    text: Path | None,
    shared: dict[str, Any],
    credit: dict[str, str | None],
    onnx: bool,
) -> None:
    from .data.text import TextEmbeddings
    from .group_encoder import GroupEncoder
    from .training import fit_group
    from .training.ranks import process_rank

    with resumable(_where(shared["work"])):
        encoder = fit_group(
            model,
            group,
            phase=1 if phase == 1 else 2,
            recipe=recipe,
            start=None if start is None else GroupEncoder.load(start),
            text=None if text is None else TextEmbeddings.read(text),
            **shared,
        )
    if process_rank() > 0:
        return
    encoder.card = encoder.card.credited(**credit)
    encoder.save(out, onnx=onnx)
    evaluate_group(encoder, group, "heldout", out, as_json=False, progress=shared["progress"])
    typer.echo(f"model: {out}")


def _refuse(model: str, **options: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise BrainfastError(given[0], expected=f"an option of {model}", got="another model's")


def _where(work: Path) -> str:
    return f"what is done is in {work}, and the same command goes on from there"
