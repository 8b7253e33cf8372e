"""What the commands take: choices, options, and arguments that are checked before any work."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .errors import BrainfastError
from .files import check_writable

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Surface(StrEnum):
    """The surface whose coordinates the selectors are a function of."""

    inflated = "inflated"
    sphere = "sphere"


class Part(StrEnum):
    """A split that has measured responses."""

    train = "train"
    val = "val"
    heldout = "heldout"
    challenge = "challenge"


class What(StrEnum):
    """What `map` draws."""

    layer = "layer"
    space = "space"
    scale = "scale"
    r2 = "r2"


class Device(StrEnum):
    """Where the trunk runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    """Operand precision; sums are fp32 in both."""

    fp32 = "fp32"
    bf16 = "bf16"


class HeadPrecision(StrEnum):
    """Operand precision of the head; sums are fp32 in all. bf16x3 is as good as fp32."""

    fp32 = "fp32"
    bf16x3 = "bf16x3"
    bf16 = "bf16"


class RuntimeName(StrEnum):
    """What runs the trunk."""

    auto = "auto"
    torch = "torch"
    onnx = "onnx"


ModelFolder = Annotated[Path, typer.Argument(help="Model folder, as `train` writes it.")]
DataFolder = Annotated[Path, typer.Argument(help="Algonauts 2023 subject folder, e.g. subj01.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
Ncsnr = Annotated[
    Path | None, typer.Option(help="Folder with {lh,rh}.ncsnr files: gives noise ceilings.")
]
Groups = Annotated[
    Path | None, typer.Option(help="CSV image,group: images of one group stay in one split.")
]
Coordinates = Annotated[
    str | None, typer.Option(help="[V,3] .npy file, FreeSurfer surf folder, or fsaverage5.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers between commas."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BrainfastError(
            name, expected="whole numbers between commas, such as 0,2,4", got=repr(text)
        ) from error


def image_paths(arguments: list[Path]) -> list[Path]:
    """Files as they are, folders as the images in them, in the order of their names."""
    paths: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            found = sorted(p for p in argument.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise BrainfastError(
                    str(argument),
                    expected=f"a folder with images ({' '.join(sorted(IMAGE_SUFFIXES))})",
                    got="none in it",
                    remedy="check the path; folders inside it are not searched",
                )
            paths += found
        else:
            paths.append(argument)
    return paths


def check_outputs(out: Path, paths: list[Path]) -> None:
    """Refuse, before any work, a folder that cannot be written to and files that would collide."""
    check_writable(out)
    stem, count = Counter(path.stem for path in paths).most_common(1)[0]
    if count > 1:
        raise BrainfastError(
            "--out",
            expected="images whose names differ",
            got=f"{count} named {stem}",
            remedy="predict them in separate calls, each with its own --out",
        )


def scores_folder(model: Path, split: str) -> Path:
    """Where `evaluate` kept the scores of a split."""
    folder = model / "scores" / split
    if not (folder / "scores.json").is_file():
        raise BrainfastError(
            str(folder),
            expected=f"scores of the {split} split",
            got="none yet",
            remedy=f"run 'brainfast evaluate {model} DATA --split {split}' first",
        )
    return folder
