"""Captions to text embeddings, by an open_clip text tower."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import BrainfastError
from ..files import file_size, read_json
from .text import TextEmbeddings

BATCH = 64


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """Captions by image id, one or several each.

    A JSON file {image id: caption or list of captions}, or a CSV with a header `image,caption` and
    a line a caption. Anything else, an empty caption or no image at all is a BrainfastError.
    """
    path = Path(path)
    file_size(path)
    found = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    empty = [image for image, texts in found.items() if not texts or not all(map(str.strip, texts))]
    if empty or not found:
        raise BrainfastError(
            str(path),
            expected="a caption for every image",
            got=f"none for {empty[0]}" if empty else "no images",
        )
    return found


def embed_captions(
    captions: Mapping[str, str | Sequence[str]],
    model: str = "ViT-L-14",
    weights: str | Path = "openai",
    *,
    device: str = "cpu",
    progress: bool = False,
) -> TextEmbeddings:
    """One vector an image: the mean of its captions' unit vectors, float32 [n,text_dim].

    model, weights: an open_clip architecture and the tag or file of its weights. A caption longer
    than the tower's context is cut there, as open_clip does. Without the package, the architecture
    or the weights it is a BrainfastError.
    """
    tower, tokenize = _open_tower(model, weights, device)
    texts = {image: [own] if isinstance(own, str) else list(own) for image, own in captions.items()}
    lines = [text for own in texts.values() for text in own]
    vectors = []
    starts = range(0, len(lines), BATCH)
    for start in tqdm(starts, desc="captions", unit="batch", disable=not progress):
        tokens = tokenize(lines[start : start + BATCH]).to(device)
        with torch.no_grad():
            vectors.append(tower.encode_text(tokens, normalize=True).float().cpu().numpy())
    ends = np.cumsum([len(own) for own in texts.values()])[:-1]
    means = [part.mean(axis=0) for part in np.split(np.concatenate(vectors), ends)]
    return TextEmbeddings(np.stack(means).astype(np.float32), tuple(texts))


def _open_tower(model: str, weights: str | Path, device: str) -> tuple[Any, Any]:
    try:
        import open_clip
    except ImportError as error:
        raise BrainfastError(
            "captions",
            expected="the package open_clip_torch",
            got=str(error),
            remedy="pip install 'brainfast[text]', or give vectors made elsewhere",
        ) from error
    if model not in open_clip.list_models():
        raise BrainfastError(
            "model",
            expected="an open_clip architecture such as ViT-L-14",
            got=repr(model),
            remedy="see open_clip.list_models()",
        )
    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        tower = open_clip.create_model(
            model, pretrained=str(weights), device=device, require_pretrained=True
        )
    except Exception as error:  # its own, torch's, the hub's and the network's: no common base
        raise BrainfastError(
            f"weights {weights} of {model}",
            expected="a tag or a file that open_clip loads",
            got=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__,
            remedy="connect once, or give the file's path",
        ) from error
    finally:
        quiet.setLevel(before)
    return tower.eval(), open_clip.get_tokenizer(model)


def _read_json(path: Path) -> dict[str, list[str]]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise _refuse(path, type(value).__name__)
    found = {}
    for image, own in value.items():
        texts = [own] if isinstance(own, str) else own
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _refuse(path, f"{json.dumps(own)[:60]} for {image}")
        found[image] = texts
    return found


def _read_csv(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if not {"image", "caption"} <= set(reader.fieldnames or ()):
                raise _refuse(path, ", ".join(reader.fieldnames or ()) or "nothing")
            for row in reader:
                if row["image"] is None or row["caption"] is None:
                    raise _refuse(path, f"a broken line {reader.line_num}")
                found.setdefault(row["image"], []).append(row["caption"])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refuse(path, str(error)) from error
    return found


def _refuse(path: Path, got: str) -> BrainfastError:
    return BrainfastError(
        str(path),
        expected="JSON {image id: caption or captions}, or a CSV with columns image, caption",
        got=got,
    )
