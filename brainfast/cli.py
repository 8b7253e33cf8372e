"""The command line: `brainfast COMMAND`, see `brainfast --help`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .boundary import run
from .cli_bench import bench
from .cli_captions import captions
from .cli_export import export
from .cli_import import import_model
from .cli_loop import rehearse, replay
from .cli_options import Json, ModelFolder, Part, What, check_sole
from .cli_pool import app as pool_app
from .cli_pool import select
from .cli_predict import predict
from .cli_scores import evaluate, kept_r2
from .cli_serve import serve
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
app.command()(rehearse)
app.command()(replay)
app.command()(export)
app.command()(select)
app.add_typer(pool_app, name="pool")
app.command()(serve)


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
            layers=card.trunk.layers,
            path=out,
        )
    else:
        maps.value_map(head.scale[::rows], space, label="weight of the global token", path=out)
    typer.echo(str(out))


app.command()(bench)


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
