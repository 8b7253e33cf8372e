"""`brainfast import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .card import CARD_FILE
from .cli_options import names, numbers, open_group
from .files import check_replaceable


def import_model(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint of BlobGPT's public code, a .pt file.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Algonauts 2023 subject folders: whose vertices are predicted."),
    ] = None,
    pca: Annotated[
        Path | None, typer.Option(help="PCA file, where the checkpoint has no embedding.")
    ] = None,
    subjects: Annotated[
        str | None, typer.Option(help="Names of its subject maps, in order (subj01,subj02,...).")
    ] = None,
    trunk: Annotated[
        str | None, typer.Option(help="timm name of the image model (the report's).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks that the head reads (0,2,4,6,8,10).")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Trunk weights file, where the checkpoint has no trunk.")
    ] = None,
) -> None:
    """Import a published BlobGPT checkpoint; nothing in it is executed."""
    out = out.resolve()
    check_replaceable(out, CARD_FILE)
    chosen = numbers("--layers", layers)
    group = open_group(data, {"seed": 0}, ncsnr=None, groups=None) if data else None
    from .blobgpt_import import LAYERS, TRUNK, import_blobgpt

    encoder = import_blobgpt(
        checkpoint,
        pca=pca,
        data=group,
        subjects=names(subjects),
        trunk=trunk or TRUNK,
        layers=chosen or LAYERS,
        trunk_weights=weights,
    )
    encoder.save(out)
    training = encoder.card.training
    typer.echo(
        f"imported {', '.join(encoder.subjects)}: {encoder.space.V} vertices on"
        f" {encoder.space.name}, epoch {training.steps if training else 0}; model: {out}"
    )
