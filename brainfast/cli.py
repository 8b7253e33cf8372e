"""The command line: `brainfast demo | train | evaluate | predict | bench | map | doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .boundary import resumable, run
from .card import CARD_FILE
from .cli_options import (
    Coordinates,
    DataFolder,
    Device,
    Groups,
    HeadPrecision,
    Json,
    ModelFolder,
    Ncsnr,
    Part,
    Precision,
    Quiet,
    RuntimeName,
    Surface,
    What,
    check_outputs,
    image_paths,
    numbers,
    scores_folder,
)
from .errors import BrainfastError
from .files import check_replaceable, check_writable
from .score_table import score_lines, score_values

app = typer.Typer(
    help="Photograph in, predicted response of the visual cortex out.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "brainfast-demo"
    ),
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Fetch real trunk weights (needs a network).")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the simulated subject and of training.")
    ] = 0,
    images: Annotated[int, typer.Option(min=60, help="Number of training stimuli.")] = 560,
) -> None:
    """Simulate a subject on a real cortex, train, compile, check, time and draw: the whole tour."""
    check_writable(out)
    from .demo import run_demo

    run_demo(out, pretrained=pretrained, seed=seed, n_images=images)


@app.command()
def train(
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    model: Annotated[str, typer.Option(help="Which model.")] = "factortopy",
    trunk: Annotated[str, typer.Option(help="timm name of the image model.")] = (
        "vit_base_patch16_clip_224.datacompxl"
    ),
    layers: Annotated[str | None, typer.Option(help="Blocks to read, e.g. 0,2,4 (all).")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Trunk weights file, timm's or open_clip's.")
    ] = None,
    random_trunk: Annotated[
        bool, typer.Option("--random-trunk", help="Random trunk weights: for trials only.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="paper or demo.")] = "paper",
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of the recipe.")] = None,
    surface: Annotated[Surface, typer.Option(help="Surface of the coordinates.")] = (
        Surface.inflated
    ),
    coordinates: Coordinates = None,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for tokens and checkpoints (OUT.work).")
    ] = None,
    cache_dtype: Annotated[Precision, typer.Option(help="Precision of cached tokens.")] = (
        Precision.bf16
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, initial weights and order.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add trunk.onnx: serves without torch.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on one subject; run it again to go on after an interruption."""
    out = out.resolve()
    check_replaceable(out, CARD_FILE)
    chosen_layers = numbers("--layers", layers)
    if random_trunk and weights is not None:
        raise BrainfastError("--weights", expected="no --random-trunk", got="both")
    from .training import fit
    from .training.recipes import find_recipe

    chosen = find_recipe(recipe)
    if epochs is not None:
        chosen = chosen.model_copy(update={"max_epochs": epochs})
    subject = _open_data(data, surface, coordinates, ncsnr, groups, seed)
    work = work or out.with_name(out.name + ".work")
    with resumable(f"what is done is in {work}, and the same command goes on from there"):
        encoder = fit(
            model,
            subject,
            trunk=trunk,
            recipe=chosen,
            pretrained=not random_trunk,
            trunk_weights=weights,
            layers=chosen_layers,
            work=work,
            seed=seed,
            device=device.value,
            cache_dtype=cache_dtype.value,
            progress=not quiet,
        )
    scores = encoder.evaluate(subject.heldout, progress=not quiet)
    encoder.save(out, onnx=onnx)
    scores.save(out / "scores" / "heldout")
    _print_scores(scores, subject.space)
    typer.echo(f"model: {out}")


@app.command()
def evaluate(
    model: ModelFolder,
    data: DataFolder,
    split: Annotated[Part, typer.Option(help="Which images.")] = Part.heldout,
    ncsnr: Ncsnr = None,
    groups: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model: R2 per vertex and ROI, against the noise ceiling; kept in the model folder."""
    from .encoder import load

    encoder = load(model)
    card = encoder.card
    seed = card.training.seed if card.training else 0
    subject = _open_data(data, Surface.inflated, None, ncsnr, groups, seed)
    chosen = getattr(subject, split.value)
    if chosen is None:
        raise BrainfastError(
            str(data / "test_split" / "test_images"),
            expected="a folder of images for the challenge split",
            got="no such folder",
            remedy="download this part of the challenge's data",
        )
    scores = encoder.evaluate(chosen, progress=not quiet)
    scores.save(model / "scores" / split.value)
    encoder.card.write(model)
    _print_scores(scores, subject.space, as_json)


@app.command()
def predict(
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
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
    from .engine import Engine

    paths = image_paths(images)
    regions = [name.strip() for name in vertices.split(",")] if vertices else None
    if out is not None:
        check_outputs(out, paths)
    engine = Engine.load(
        model,
        runtime=runtime.value,
        device=device.value,
        precision=precision.value,
        trunk_precision=trunk_precision.value,
        vertices=regions,
    )
    response = engine.predict(paths)
    if out is not None:
        for row, path in enumerate(paths):
            response[row].save(out / path.stem)
    if submission is not None:
        from .data import write_submission

        write_submission(submission, {engine.space.subject or "subject": response})
    names = regions or engine.space.roi_names()
    means = {
        str(path): {name: float(response[row].roi(name).mean()) for name in names}
        for row, path in enumerate(paths)
    }
    if as_json:
        typer.echo(json.dumps(means, indent=2))
        return
    for name_of_image, answers in means.items():
        listed = "  ".join(f"{name} {value:+.2f}" for name, value in answers.items())
        typer.echo(f"{name_of_image}: {listed or f'{engine.space.V} vertices'}")


@app.command(name="map")
def draw_map(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    what: Annotated[What, typer.Option(help="Which map.")] = What.layer,
    split: Annotated[Part, typer.Option(help="Of r2.")] = Part.heldout,
    visual_angle_deg: Annotated[
        float | None, typer.Option(help="Width of the images, for space (as in the card).")
    ] = None,
) -> None:
    """Draw what every vertex looks at, or how well it is predicted, on the flattened cortex."""
    from . import maps
    from .analysis.scores import Scores
    from .card import Card
    from .engine import read_head, read_space

    card = Card.read(model)
    space, head = read_space(model, card), read_head(model, card)
    rows = head.samples
    if what is What.layer:
        maps.layer_map(head.layer[::rows], space, path=out, layers=card.trunk.layers)
    elif what is What.space:
        angle = visual_angle_deg or card.space.visual_angle_deg
        if angle is None:
            raise BrainfastError(
                "--visual-angle-deg",
                expected="the width of the images on the subject's screen",
                got="nothing, and the model's card does not tell",
            )
        maps.space_map(
            head.space[::rows],
            space,
            visual_angle_deg=angle,
            layer=head.layer[::rows],
            path=out,
        )
    elif what is What.scale:
        maps.value_map(head.scale[::rows], space, label="weight of the global token", path=out)
    else:
        scores = Scores.load(scores_folder(model, split.value))
        maps.value_map(scores.r2, space, label=f"R2, {split.value}", path=out)
    typer.echo(str(out))


@app.command()
def bench(
    model: Annotated[
        Path | None, typer.Argument(help="Model folder; without one, sizes are as given.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, e.g. 1,8.")] = "1,8",
    vertices: Annotated[int, typer.Option(min=1)] = 37984,
    layers: Annotated[int, typer.Option(min=1)] = 12,
    dim: Annotated[int, typer.Option(min=1)] = 128,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 15,
    listing1: Annotated[
        bool, typer.Option(help="Also time Listing 1 (gigabytes at full size).")
    ] = True,
    as_json: Json = False,
) -> None:
    """Time the readout against Listing 1 and ONNX Runtime in one process, errors beside times."""
    from .bench import bench_readout, print_table, readout_case

    batches = numbers("--batch", batch) or (1,)
    case = readout_case(model, vertices=vertices, layers=layers, dim=dim)
    rows = bench_readout(case, batches=batches, rounds=rounds, include_listing1=listing1)
    if as_json:
        typer.echo(json.dumps(rows.as_json(), indent=2))
    else:
        print_table(rows)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine and this build can do, and why not what they cannot."""
    from .doctor import diagnose, print_report

    report = diagnose()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        print_report(report)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    run(app)


def _open_data(
    folder: Path,
    surface: Surface,
    coordinates: str | None,
    ncsnr: Path | None,
    groups: Path | None,
    seed: int,
) -> Any:
    from .data import Algonauts

    return Algonauts(
        folder,
        ncsnr=ncsnr,
        groups=groups,
        seed=seed,
        surface=surface.value,
        coordinates=coordinates,
    )


def _print_scores(scores: Any, space: Any, as_json: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(score_values(scores, space), indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(score_lines(scores, space)))
