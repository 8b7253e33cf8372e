"""`brainfast captions`: a text vector for every captioned image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Device, Quiet
from .files import check_writable


def captions(
    file: Annotated[Path, typer.Argument(help="JSON {image id: captions} or CSV image,caption.")],
    out: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    clip: Annotated[str, typer.Option(help="open_clip architecture.")] = "ViT-L-14",
    weights: Annotated[str, typer.Option(help="Tag or file of its weights.")] = "openai",
    device: Annotated[Device, typer.Option(help="Where the tower runs.")] = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Embed captions with an open_clip text tower, for `train --model llm-vem --text`."""
    check_writable(out.resolve().parent)
    from .data.captions import embed_captions, read_captions
    from .runtimes import torch_device

    texts = read_captions(file)
    place = str(torch_device(device.value))
    found = embed_captions(texts, clip, weights, device=place, progress=not quiet)
    found.save(out)
    typer.echo(f"{len(found)} vectors of {found.text_dim} numbers: {out}")
