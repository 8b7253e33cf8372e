import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from brainfast.data.text import TextEmbeddings
from brainfast.errors import BrainfastError

IDS = [f"nsd-{number:05d}" for number in (3, 1, 8, 5)]
VECTORS = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def write(folder, kind, vectors=VECTORS, ids=IDS):
    """One file of each layout that is documented, written without brainfast."""
    path = folder / f"text.{kind.split('-')[0]}"
    if kind == "safetensors":
        save_file({"embedding": vectors}, path, {"image_ids": json.dumps(ids)})
        return path
    if kind == "json":
        path.write_text(json.dumps({i: v.tolist() for i, v in zip(ids, vectors, strict=True)}))
        return path
    if kind.startswith("safetensors"):
        save_file({"embedding": vectors}, path)
    else:
        np.save(path, vectors)
    if kind.endswith("txt"):
        path.with_suffix(".txt").write_text("\n".join(ids) + "\n")
    else:
        path.with_suffix(".json").write_text(json.dumps(ids))
    return path


KINDS = ["safetensors", "safetensors-json", "safetensors-txt", "npy-json", "npy-txt", "json"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout(tmp_path, kind):
    text = TextEmbeddings.read(write(tmp_path, kind))
    assert text.text_dim == 6
    assert len(text) == 4
    assert text.image_ids == tuple(IDS)
    asked = np.array([IDS[2], IDS[0], IDS[2]])
    found = text.of(asked)
    assert found.dtype == np.float32
    assert np.allclose(found, VECTORS[[2, 0, 2]], atol=1e-7)
    assert text.of([]).shape == (0, 6)


def test_save(tmp_path):
    text = TextEmbeddings(VECTORS, tuple(IDS))
    text.save(tmp_path / "t.safetensors")
    read = TextEmbeddings.read(tmp_path / "t.safetensors")
    assert (read.embedding == VECTORS).all()
    assert read.image_ids == tuple(IDS)
    turned = TextEmbeddings(VECTORS[::-1].copy(), tuple(IDS[::-1]))
    assert turned.hash == text.hash == read.hash
    assert TextEmbeddings(VECTORS, tuple(IDS[::-1])).hash != text.hash


def test_half_precision_is_read(tmp_path):
    path = write(tmp_path, "npy-txt", VECTORS.astype(np.float16))
    assert TextEmbeddings.read(path).embedding.dtype == np.float32


def test_images_without_a_vector():
    text = TextEmbeddings(VECTORS, tuple(IDS))
    asked = ["train-0001_nsd-00003", *(f"nsd-{n:05d}" for n in range(20, 26)), IDS[0]]
    with pytest.raises(BrainfastError) as caught:
        text.of(asked)
    message = str(caught.value)
    assert "none for train-0001_nsd-00003, nsd-00020, nsd-00021 and 4 more" in message
    assert "ids such as 'nsd-00003'" in message


@pytest.mark.parametrize("kind", ["safetensors", "npy-json", "npy-txt"])
@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (np.where(np.arange(4)[:, None] == 2, np.nan, VECTORS), IDS, "others for nsd-00008"),
        (VECTORS * (np.arange(4) > 0)[:, None], IDS, "not zero, got others for nsd-00003"),
        (VECTORS, [*IDS[:3], IDS[0]], "nsd-00003 more often"),
        (VECTORS, IDS[:3], "4 image ids, one a vector, got 3"),
        (VECTORS.astype(np.int64), IDS, "int64"),
        (VECTORS[0], IDS, r"\[6\]"),
    ],
)
def test_bad_vectors(tmp_path, kind, vectors, ids, message):
    path = write(tmp_path, kind, np.asarray(vectors), ids)
    with pytest.raises(BrainfastError, match=message) as caught:
        TextEmbeddings.read(path)
    assert "text." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_width(tmp_path):
    path = tmp_path / "text.json"
    path.write_text(json.dumps({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0]}))
    with pytest.raises(BrainfastError, match="one width, 2 as for a, got 1 for c"):
        TextEmbeddings.read(path)
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.ones(2), np.ones(3)]
    np.save(tmp_path / "ragged.npy", ragged, allow_pickle=True)
    (tmp_path / "ragged.txt").write_text("a\nb\n")
    with pytest.raises(BrainfastError, match=r"ragged\.npy"):
        TextEmbeddings.read(tmp_path / "ragged.npy")


def test_files_that_are_none(tmp_path):
    np.save(tmp_path / "lonely.npy", VECTORS)
    (tmp_path / "t.csv").write_text("a")
    save_file({"weight": VECTORS}, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    save_file({"embedding": VECTORS}, tmp_path / "m.safetensors", {"image_ids": "{not json"})
    save_file({"embedding": VECTORS}, tmp_path / "n.safetensors", {"image_ids": "[1, 2]"})
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "words.json").write_text('{"a": ["x"]}')
    np.save(tmp_path / "bytes.npy", VECTORS)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    for name, message in (
        ("absent.npy", "absent.npy: expected a file"),
        ("lonely.npy", r"in lonely.json or lonely.txt"),
        ("t.csv", "got .csv"),
        ("w.safetensors", "got weight"),
        ("cut.safetensors", "cut.safetensors"),
        ("m.safetensors", "JSON list"),
        ("n.safetensors", "JSON list of image ids"),
        ("list.json", "image id: vector"),
        ("words.json", "vectors of numbers"),
        ("bytes.npy", "bytes.txt: expected lines"),
    ):
        with pytest.raises(BrainfastError, match=message):
            TextEmbeddings.read(tmp_path / name)
