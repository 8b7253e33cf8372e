"""The command line: `brainfast COMMAND`, see `brainfast --help`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .boundary import run
from .cli_captions import captions
from .cli_export import export
from .cli_import import import_model
from .cli_options import Json, ModelFolder, Part, What, check_sole, image_paths, numbers
from .cli_predict import predict
from .cli_scores import evaluate, kept_r2
from .cli_train import adapt, train
from .errors import BrainfastError
from .files import check_writable

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


app.command()(train)
app.command()(adapt)
app.command()(captions)
app.command(name="import")(import_model)
app.command()(evaluate)
app.command()(predict)
app.command()(export)


@app.command(name="map")
def draw_map(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    what: Annotated[What, typer.Option(help="Which map.")] = What.layer,
    split: Annotated[Part, typer.Option(help="Of r2.")] = Part.heldout,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Of r2 of a model of several: subj05; group/subj05, without its map; group, the"
            " mean of these."
        ),
    ] = None,
    visual_angle_deg: Annotated[
        float | None, typer.Option(help="Width of the images, for space (as in the card).")
    ] = None,
) -> None:
    """Draw what every vertex looks at, or how well it is predicted, on the flattened cortex."""
    from . import maps
    from .card import Card
    from .engine import read_space
    from .heads import read_head

    card = Card.read(model)
    if what is What.r2:
        kept = kept_r2(model, card, split.value, subject)
        maps.value_map(kept.values, kept.space, label=kept.label, path=out)
        typer.echo(str(out))
        return
    if card.subjects:
        raise BrainfastError(
            f"--what {what.value}",
            expected="a FactorTopy model, whose vertices have selectors",
            got=f"{card.model} of several subjects",
            remedy="draw --what r2",
        )
    check_sole(card, subject)
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
    else:
        maps.value_map(head.scale[::rows], space, label="weight of the global token", path=out)
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
    parity: Annotated[
        bool, typer.Option("--parity", help="Print errors of every precision, no times.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Images for --parity (the model's golden ones).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Algonauts folder for --parity: heldout images and R2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the readout against Listing 1 and ONNX Runtime in one process, errors beside times."""
    if parity or images is not None or data is not None:
        if model is None or not parity:
            raise BrainfastError("bench", expected="a model folder and --parity", got="one of them")
        from .parity_table import run_parity

        run_parity(model, None if images is None else image_paths([images]), data, as_json)
        return
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
