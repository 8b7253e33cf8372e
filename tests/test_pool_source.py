"""Where candidates come from: folders, shards, HDF5 files and tables of categories."""

from __future__ import annotations

import io
import sys
import tarfile

import h5py
import numpy as np
import pytest
from PIL import Image

from brainfast.errors import BrainfastError
from brainfast.pool import Pool
from brainfast.pool_file import DATA_FILE
from brainfast.pool_source import read_source


def tar_of(path, candidates):
    with tarfile.open(path, "w") as file:
        file.add(candidates, arcname="")
        file.addfile(tarfile.TarInfo("a/notes.txt"), io.BytesIO())
    return path


def test_sources_give_the_same_features(candidates, make_engine, tmp_path):
    pool = Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "pool", batch_size=4)
    paths = [candidates / name for name in pool.names]
    with h5py.File(tmp_path / "nsd.hdf5", "w") as file:
        file["imgBrick"] = np.stack([np.asarray(Image.open(path)) for path in paths])
        file["other"] = np.zeros((2, 8, 8, 3), np.uint8)
    sources = {
        "shards": tar_of(tmp_path / "shard-000.tar", candidates),
        "list": paths,
        "hdf5": f"{tmp_path / 'nsd.hdf5'}:imgBrick",
    }
    for name, source in sources.items():
        found = Pool.build(make_engine("blobgpt"), source, path=tmp_path / name)
        order = np.argsort([n.split("/")[-1] for n in found.items.names])
        wanted = np.argsort([n.split("/")[-1] for n in pool.items.names])
        np.testing.assert_array_equal(
            found.rows.features[order],
            pool.rows.features[wanted if name != "hdf5" else np.arange(13)],
        )
    assert set(Pool.open(tmp_path / "shards").items.categories) == {"a", "b", "c"}


PIXELS = np.random.default_rng(3).integers(0, 255, (4, 9, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("nsd.hdf5", ""),
        ("nsd.HDF5", ":stimuli/images"),
        ("nsd.h5", ":/stimuli/images"),
        ("run:2/nsd.hdf5", ":stimuli/images"),
        ("run:2/nsd.hdf", ""),
    ],
)
def test_images_of_a_dataset_in_a_group(tmp_path, name, asked):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["stimuli/images"] = PIXELS
        file["stimuli/labels"] = np.arange(4)
    items = read_source(f"{path}{asked}")
    assert [item.name for item in items] == [f"stimuli/images/{row:06d}" for row in range(4)]
    np.testing.assert_array_equal(np.stack([item.image() for item in items]), PIXELS)
    assert len({item.digest() for item in items}) == 4


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("", "'' of a/one, two"),
        (":none", "'none' of a/one, two"),
        (":a", "'a' of a/one, two"),
        (":wide", "'wide' of a/one, two"),
        (":a/flat", "'a/flat' of a/one, two"),
    ],
)
def test_a_dataset_that_is_none_of_images_is_named(tmp_path, asked, got):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["a/one"] = file["two"] = PIXELS
        file["a/flat"] = PIXELS.reshape(4, -1)
        file["wide"] = np.zeros(3, np.float32)
    with pytest.raises(BrainfastError, match=f"uint8 images .*got {got}; write .*:imgBrick"):
        read_source(f"{tmp_path / 'x.hdf5'}{asked}")


def test_damaged_hdf5_is_one_line(make_engine, tmp_path):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(BrainfastError, match="expected an HDF5 file"):
        read_source(path)
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("rows", data=PIXELS, chunks=(1, 9, 8, 3), fletcher32=True)
        place = rows.id.get_chunk_info(2).byte_offset
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrainfastError, match="rows/000002: expected a whole image"):
        Pool.build(make_engine("blobgpt"), path, path=tmp_path / "p")


def test_without_h5py_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "nsd.hdf5").write_bytes(b"")
    with pytest.raises(BrainfastError, match=r"h5py to read it.*pip install h5py"):
        read_source(tmp_path / "nsd.hdf5")


def test_categories_from_a_table(candidates, make_engine, tmp_path):
    table = tmp_path / "categories.csv"
    names = [item.name for item in read_source(candidates)]
    table.write_text(
        "".join(f"{name},{'odd' if n % 2 else 'even'}\n" for n, name in enumerate(names))
    )
    pool = Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "p", categories=table)
    assert pool.items.categories == tuple("odd" if n % 2 else "even" for n in range(13))
    table.write_text(f"{names[0]},one\n")
    with pytest.raises(BrainfastError, match="a category for every candidate, got none for 12"):
        read_source(candidates, table)
    table.write_text("\ufeff" + "".join(f"{name},all\n" for name in names), encoding="utf-8")
    assert {item.category for item in read_source(candidates, table)} == {"all"}, "as Excel writes"
    table.write_bytes(f"{names[0]},caf\xe9\n".encode("latin-1"))
    with pytest.raises(BrainfastError, match=r"categories.csv: expected a CSV in UTF-8.*0xe9"):
        read_source(candidates, table)
    table.write_text(f"{names[0]},{'x' * 200_000}\n")
    with pytest.raises(BrainfastError, match=r"expected a CSV in UTF-8.*field larger than"):
        read_source(candidates, table)
    table.write_text("a,b,c\n")
    with pytest.raises(BrainfastError, match=r"two columns.*in row 1"):
        read_source(candidates, table)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nothing.png", {}, "nothing.png"),
        ([3], {}, "source: expected paths, or items, got 3"),
        ([], {}, "at least one image, got none"),
        (["one/x.png", "two/x.png"], {}, "names that differ, got 2 candidates called 'x.png'"),
        ("broken.tar", {}, "a tar file without compression"),
        ("one", {"dtype": "fp8"}, "dtype: expected fp32, bf16 or int8"),
        ("one", {"project": "OFA"}, "a region that subj01 has"),
        ("one", {"project": ["PPA"] * 257}, "at most 256 objectives"),
        ("bad", {}, "bad.png"),
        ("one", {"batch_size": 0}, "batch_size: expected a whole number, 1 or more, got 0"),
    ],
)
def test_bad_sources(make_engine, tmp_path, monkeypatch, source, options, words):
    monkeypatch.chdir(tmp_path)
    for place in ("one", "two", "bad"):
        (tmp_path / place).mkdir()
    for place in ("one", "two"):
        Image.new("RGB", (8, 8)).save(tmp_path / place / "x.png")
    (tmp_path / "bad" / "bad.png").write_text("no image")
    (tmp_path / "broken.tar").write_bytes(b"no tar file" * 99)
    with pytest.raises(BrainfastError, match=words):
        Pool.build(make_engine("blobgpt"), source, path="pool", **options)
    assert not (tmp_path / "pool" / DATA_FILE).exists()
