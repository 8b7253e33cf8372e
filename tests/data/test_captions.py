"""Captions: the files that hold them, and an open_clip tower where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from brainfast.data.captions import embed_captions, read_captions
from brainfast.errors import BrainfastError


def test_json_and_csv_hold_one_caption_or_several(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"nsd-1": "a cat", "nsd-2": ["a dog", "a hound"]}))
    (tmp_path / "c.csv").write_text('image,caption\nnsd-2,"a dog"\nnsd-1,a cat\nnsd-2,a hound\n')
    expected = {"nsd-1": ["a cat"], "nsd-2": ["a dog", "a hound"]}
    assert read_captions(tmp_path / "c.json") == expected
    assert read_captions(tmp_path / "c.csv") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "[1]", "got list"),
        ("c.json", '{"a": 3}', "3 for a"),
        ("c.json", '{"a": [" "]}', "none for a"),
        ("c.json", "{}", "no images"),
        ("c.csv", "picture,caption\n", "picture"),
        ("c.csv", "image,caption\nonly\n", "broken line 2"),
        ("c.csv", "", "nothing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BrainfastError, match=message):
        read_captions(tmp_path / name)


class Tower(torch.nn.Module):
    """A text tower whose vector is the letters' mean embedding."""

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        table = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
        vectors = table[tokens].mean(dim=1)
        return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[ord(letter) for letter in text.ljust(12)[:12]] for text in texts])


def open_clip(**changes: Any) -> Any:
    parts = {
        "list_models": lambda: ["ViT-L-14"],
        "create_model": lambda *_, **__: Tower(),
        "get_tokenizer": lambda _: tokenize,
    }
    return SimpleNamespace(**(parts | changes))


def test_a_vector_is_the_mean_of_the_captions_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", open_clip())
    captions = {"a": "a cat", "b": ["a dog", "a hound"]}
    captions |= {f"more-{number}": "x" * (number % 9 + 1) for number in range(100)}
    found = embed_captions(captions)
    assert found.image_ids[:2] == ("a", "b")
    rows = Tower().encode_text(tokenize(["a dog", "a hound"]), normalize=True).numpy()
    np.testing.assert_allclose(found.of(["b"])[0], rows.mean(axis=0), rtol=1e-5)
    assert np.linalg.norm(found.of(["a"])) == pytest.approx(1.0, rel=1e-5)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "open_clip", None)
    with pytest.raises(BrainfastError, match="open_clip_torch"):
        embed_captions({"a": "a cat"})

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setitem(modules, "open_clip", open_clip(create_model=refuse))
    with pytest.raises(BrainfastError, match="got no route to the hub;"):
        embed_captions({"a": "a cat"})
    with pytest.raises(BrainfastError, match="architecture"):
        embed_captions({"a": "a cat"}, model="ViT-X")


def test_a_real_tower_takes_weights_from_a_file(tmp_path: Path) -> None:
    library = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    config = library.get_model_config("ViT-S-32-alt")
    tower = library.CLIP(**(config | {"vision_cfg": config["vision_cfg"]}))
    torch.save(tower.state_dict(), tmp_path / "weights.pt")
    found = embed_captions({"a": "a cat", "b": "a dog"}, "ViT-S-32-alt", tmp_path / "weights.pt")
    tokens = library.get_tokenizer("ViT-S-32-alt")(["a cat", "a dog"])
    with torch.no_grad():
        expected = tower.eval().encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(found.embedding, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(BrainfastError, match=r"weights none.pt of ViT-S-32-alt"):
        embed_captions({"a": "a cat"}, "ViT-S-32-alt", "none.pt")
