"""What the commands take: choices, options, and arguments that are checked before any work."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .card import Card
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
    """What runs the trunk; "compile" compiles for about half a minute first, "onnx" and "tensorrt"
    run `trunk.onnx` and `trunk.engine` of the model folder."""

    auto = "auto"
    torch = "torch"
    compile = "compile"
    onnx = "onnx"
    tensorrt = "tensorrt"


ModelFolder = Annotated[Path, typer.Argument(help="Model folder, as `train` writes it.")]
DataFolders = Annotated[
    list[Path], typer.Argument(help="Algonauts 2023 subject folders, e.g. subj01.")
]
PartOption = Annotated[Part, typer.Option("--split", help="Which images.")]
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


def open_data(
    folder: Path,
    surface: Surface,
    coordinates: str | None,
    ncsnr: Path | None,
    groups: Path | None,
    seed: int,
) -> Any:
    """One subject's Algonauts folder."""
    from .data import Algonauts

    return Algonauts(
        folder,
        ncsnr=ncsnr,
        groups=groups,
        seed=seed,
        surface=surface.value,
        coordinates=coordinates,
    )


def open_group(
    folders: list[Path], options: dict[str, Any], *, ncsnr: Path | None, groups: Path | None
) -> Any:
    """Several subjects' folders as one Group. `ncsnr`: a folder with one of each subject's name."""
    from .data import Group

    subjects = [
        open_data(
            folder,
            Surface.inflated,
            None,
            None if ncsnr is None else ncsnr / folder.resolve().name,
            groups,
            options["seed"],
        )
        for folder in folders
    ]
    return Group(subjects, **options)


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


def names(text: str | None) -> list[str] | None:
    """Names between commas, None where no list is given; an empty name is a BrainfastError."""
    if text is None:
        return None
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        remedy = "leave the option out for all of them"
        raise BrainfastError("list", expected="names between commas", got=repr(text), remedy=remedy)
    return found


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


def check_submission(path: Path) -> None:
    """Refuse, before any work, a name that the challenge does not take."""
    if path.suffix != ".zip":
        raise BrainfastError("--submission", expected="a path that ends in .zip", got=path.name)
    check_writable(path.resolve().parent)


def scores_folder(model: Path, split: str, subject: str | None = None) -> Path:
    """Where `evaluate` kept the scores of a split, of one subject where the model has several."""
    folder = model / "scores" / split / (subject or "")
    if not (folder / "scores.json").is_file():
        raise BrainfastError(
            str(folder),
            expected=f"scores of the {split} split",
            got="none yet",
            remedy=f"run 'brainfast evaluate {model} DATA --split {split}' first",
        )
    return folder


def check_sole(card: Card, subject: str | list[str] | None) -> None:
    """Refuse `--subject` for a model that has no subjects to choose from."""
    if subject is not None and not card.subjects:
        raise BrainfastError(
            "--subject", expected="a model of several subjects", got="a model of one"
        )
