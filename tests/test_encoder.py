"""Encoder, card and engine: the folder, its guards, and one answer through every door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import brainfast as bf
from brainfast.data import Arrays
from brainfast.encoder import Encoder
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.files import load_tensors, save_tensors
from brainfast.training import Recipe, fit

RECIPE = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=4,
    max_epochs=2,
    lr=1e-2,
    soup=0,
    head={"dim": 4, "grid": (2, 2), "standardize": True},
    trunk={"layers": (0, 2), "size": 32},
)
FILES = (
    "config.json",
    "folded.safetensors",
    "golden.safetensors",
    "model.safetensors",
    "trunk.safetensors",
    "vertices.safetensors",
)


def make_data(seed: int = 0, vertices: int = 90, split_seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    rois = {"EBA": np.arange(vertices) % 3 == 0, "PPA": np.arange(vertices) > 60}
    return Arrays(
        images=rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8),
        responses=rng.normal(size=(40, vertices)).astype(np.float32),
        coordinates=rng.normal(size=(vertices, 3)) * 30,
        rois=rois,
        seed=split_seed,
    )


@pytest.fixture(scope="module")
def data() -> Arrays:
    return make_data()


@pytest.fixture(scope="module")
def encoder(data: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return fit(
        "factortopy",
        data,
        trunk="vit_tiny_patch16_224",
        recipe=RECIPE,
        pretrained=False,
        work=tmp_path_factory.mktemp("work"),
        progress=False,
        device="cpu",
    )


@pytest.fixture(scope="module")
def saved(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.save(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def images(data: Arrays) -> np.ndarray:
    return np.stack([data.heldout.images[i] for i in range(3)])


def test_the_engine_gives_the_encoders_answers(encoder: Encoder, saved: Path, images) -> None:
    expected = encoder.respond(images).values
    bound = 1e-5 * expected.std()
    for engine in (encoder.compile(), Engine.load(saved), bf.load(saved).compile()):
        assert np.abs(engine.predict(images).values - expected).max() <= bound


def test_a_saved_encoder_is_the_same_encoder(encoder: Encoder, saved: Path) -> None:
    again = bf.load(saved)
    assert again.card == encoder.card
    assert again.space == encoder.space
    assert sorted(os.listdir(saved)) == sorted(FILES)


def test_every_kind_of_image_gives_the_same_answer(saved: Path, images, tmp_path: Path) -> None:
    engine = Engine.load(saved)
    one = images[0]
    Image.fromarray(one).save(tmp_path / "one.png")
    expected = engine.predict(images[:1]).values
    for given in (
        one,
        one.transpose(2, 0, 1),
        images[:1].transpose(0, 3, 1, 2),
        Image.fromarray(one),
        tmp_path / "one.png",
        [str(tmp_path / "one.png")],
    ):
        assert np.array_equal(engine.predict(given).values, expected)
    assert engine.predict(images, batch_size=2).values.shape == (3, 90)


def test_vertices_are_an_exact_slice(saved: Path, images) -> None:
    whole = Engine.load(saved)
    part = Engine.load(saved, vertices=["PPA"])
    chosen = whole.space.roi("PPA")
    assert len(chosen) == part.space.V
    assert np.array_equal(part.predict(images).values, whole.predict(images).values[:, chosen])
    with pytest.raises(BrainfastError, match="EBA, PPA"):
        whole.take(["FFA"])


def test_contributions_and_templates_agree_with_the_response(saved: Path, images) -> None:
    engine = Engine.load(saved)
    response = engine.predict(images).values
    parts = engine.contributions(images, by="layer")
    assert np.allclose(parts.sum(axis=1) + engine.head.bias, response, atol=1e-5)
    weights = np.random.default_rng(0).normal(size=(2, 90)).astype(np.float32)
    scores = engine.template(weights).score(engine.head.align(engine.tokens(images)))
    assert np.allclose(scores, response @ weights.T, atol=1e-4)


def test_parity_is_measured_against_float64_and_kept_in_the_card(
    encoder: Encoder, images, tmp_path: Path
) -> None:
    exact = encoder.parity(encoder.compile(), images)
    coarse = encoder.parity(encoder.compile(precision="bf16", trunk_precision="bf16"), images)
    assert exact.max_error < 1e-4
    assert exact.max_error < coarse.max_error < 1
    subset = encoder.parity(encoder.compile(vertices=["EBA"]), images)
    assert subset.max_error < 1e-4
    again = bf.load(encoder.save(tmp_path / "with-parity"))
    assert len(again.card.parity) == 2


def test_scores_are_of_the_split_and_kept_in_the_card(encoder: Encoder, data: Arrays) -> None:
    scores = encoder.evaluate(data.heldout, progress=False)
    predicted = encoder.respond(list(data.heldout.images)).values
    measured = data.heldout.responses[np.arange(len(data.heldout))]
    residual = ((measured - predicted) ** 2).sum(0)
    total = ((measured - measured.mean(0)) ** 2).sum(0)
    assert np.allclose(scores.r2, 1 - residual / total, atol=1e-4)
    assert encoder.card.scores[-1].split == "heldout"
    assert encoder.card.scores[-1].challenge_mean is None
    assert encoder.card.scores[-1].reason


def test_another_subject_is_refused(encoder: Encoder) -> None:
    with pytest.raises(BrainfastError, match="vertices"):
        encoder.evaluate(make_data(vertices=80).heldout, progress=False)


def test_a_split_that_could_hold_training_images_is_refused(encoder: Encoder) -> None:
    with pytest.raises(BrainfastError, match="training images"):
        encoder.evaluate(make_data(split_seed=7).heldout, progress=False)


def test_no_image_is_an_error_and_not_a_crash(encoder: Encoder, saved: Path) -> None:
    engine = Engine.load(saved)
    for ask in (engine.predict, engine.tokens, encoder.respond, encoder.twin):
        with pytest.raises(BrainfastError, match="at least one image"):
            ask([])


@pytest.mark.parametrize(
    ("file", "key", "change"),
    [
        ("vertices.safetensors", "rois", lambda a: 1 - a),
        ("model.safetensors", "coordinates", lambda a: a + 1),
        ("model.safetensors", "bias", lambda a: a[0]),
        ("golden.safetensors", "vertices", lambda a: a[:0]),
    ],
)
def test_swapped_or_emptied_arrays_are_one_line(folder: Path, file: str, key: str, change) -> None:
    arrays = load_tensors(folder / file)
    save_tensors(folder / file, arrays | {key: change(arrays[key])})
    with pytest.raises(BrainfastError) as error:
        bf.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_one_line(folder: Path, name: str) -> None:
    read = Engine.load if name == "folded.safetensors" else lambda at: bf.load(at).compile()
    whole = (folder / name).read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 2, None):
        if length is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(whole[:length])
        if length is None and name == "trunk.safetensors":
            read(folder)  # a random trunk is made again from its seed, and its hash checked
            continue
        with pytest.raises(BrainfastError) as error:
            read(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version 1"),
        ({"surprise": 1}, "surprise"),
        ({"model": "factor"}, "factortopy"),
        ({"head": {"grid": [2, 2], "samples": 0}}, "samples"),
    ],
)
def test_a_card_that_lies_is_refused(folder: Path, change: dict, said: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BrainfastError, match=said):
        bf.load(folder)


@pytest.mark.parametrize("name", ["folded.safetensors", "trunk.safetensors"])
def test_changed_weights_do_not_pass(folder: Path, name: str) -> None:
    arrays = load_tensors(folder / name)
    key = "weight" if name.startswith("folded") else sorted(arrays)[0]
    arrays[key] = arrays[key] + np.float32(0.05)
    save_tensors(folder / name, arrays)
    with pytest.raises(BrainfastError):
        Engine.load(folder)


def test_an_array_of_another_model_is_refused(folder: Path) -> None:
    arrays = load_tensors(folder / "vertices.safetensors")
    arrays["lh"] = arrays["lh"] + 1
    save_tensors(folder / "vertices.safetensors", arrays)
    with pytest.raises(BrainfastError, match="hash"):
        Engine.load(folder)


def test_a_folder_that_is_no_model_is_left_alone(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BrainfastError, match="another name"):
        encoder.save(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(BrainfastError, match=r"config\.json"):
        bf.load(tmp_path)


def test_bad_choices_are_refused(encoder: Encoder, saved: Path) -> None:
    for arguments, said in (
        ({"precision": "fp16"}, "precision"),
        ({"runtime": "openvino"}, "runtime"),
        ({"runtime": "tensorrt"}, "trunk.engine"),
        ({"runtime": "onnx"}, "trunk.onnx"),
    ):
        with pytest.raises(BrainfastError, match=said):
            Engine.load(saved, **arguments)
    with pytest.raises(BrainfastError, match="runtime"):
        encoder.compile(runtime="openvino")


WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "torchvision"):
    sys.modules[name] = None
import numpy as np
from brainfast import Engine
engine = Engine.load(sys.argv[1])
np.save(sys.argv[3], engine.predict(np.load(sys.argv[2])).values)
"""


def test_an_exported_encoder_serves_without_torch(encoder: Encoder, images, tmp_path: Path) -> None:
    folder = encoder.save(tmp_path / "model", onnx=True)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder)]
    command += [str(tmp_path / "images.npy"), str(tmp_path / "found.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = encoder.respond(images).values
    error = np.abs(np.load(tmp_path / "found.npy") - expected).max()
    assert error <= 1e-3 * expected.std()
