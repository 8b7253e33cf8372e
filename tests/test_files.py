"""Atomic writes and suspicious reads."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast import files
from brainfast.errors import BrainfastError


def fail_after_writing(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.atomic_path(path) as part:
        fail_after_writing(part)
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BrainfastError, match="No space left") as error:
        files.write_bytes(tmp_path / "a", b"x")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_folders_replace_models_only(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for text in ("one", "two"):
        with files.atomic_folder(model, "config.json") as part:
            (part / "config.json").write_text(text)
    assert (model / "config.json").read_text() == "two"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("meow")
    with (
        pytest.raises(BrainfastError, match="another name"),
        files.atomic_folder(photos, "config.json"),
    ):
        pass
    with pytest.raises(RuntimeError), files.atomic_folder(model, "config.json") as part:
        fail_after_writing(part / "config.json")
    assert (model / "config.json").read_text() == "two"
    assert sorted(os.listdir(tmp_path)) == ["model", "photos"]


def test_tensors_survive(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3).T, "b": np.zeros((0, 4), np.float32)}
    files.save_tensors(tmp_path / "t", arrays, {"who": "me"})
    found = files.load_tensors(tmp_path / "t")
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_every_cut_of_a_tensor_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t"
    files.save_tensors(path, {"a": np.arange(12, dtype=np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BrainfastError):
            files.load_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 62]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}},
        [],
    ],
)
def test_hostile_headers_are_errors(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")
    with pytest.raises(BrainfastError):
        files.load_tensors(tmp_path / "t")


@given(noise=st.binary(max_size=200))
def test_noise_is_an_error_and_no_crash(tmp_path_factory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "t"
    path.write_bytes(noise)
    for read in (files.load_tensors, files.read_json):
        with contextlib.suppress(BrainfastError):
            read(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(BrainfastError, match="nothing there"):
        files.read_json(tmp_path / "no")
    with pytest.raises(BrainfastError, match="a folder"):
        files.load_tensors(tmp_path)


def test_hashes_see_names_types_and_shapes() -> None:
    values = np.arange(6, dtype=np.float32)
    hashes = {
        files.hash_arrays({"a": values}),
        files.hash_arrays({"b": values}),
        files.hash_arrays({"a": values.reshape(2, 3)}),
        files.hash_arrays({"a": values.astype(np.float64)}),
        files.hash_arrays({"a": values + 1}),
    }
    assert len(hashes) == 5
