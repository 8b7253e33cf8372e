import json

import numpy as np
import pytest
from PIL import Image

from brainfast.data import Algonauts, Group
from brainfast.data.planted_group import PlantedGroup
from brainfast.data.simulated_group import NOISIER, simulate_group
from brainfast.data.text import TextEmbeddings
from brainfast.errors import BrainfastError

SMALL = {"n_images": 40, "n_shared": 12, "vertices": 150, "size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "group"
    simulate_group(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def planted(folder):
    return PlantedGroup.load(folder)


@pytest.fixture(scope="module")
def group(folder):
    return Group([Algonauts(path) for path in sorted(folder.glob("subj*"))])


def test_the_readers_take_it(folder, group, planted):
    assert group.subjects == planted.subjects == ("subj01", "subj02", "subj03")
    assert (group.space.lh == planted.space.lh).all()
    assert (group.space.rh == planted.space.rh).all()
    for name in group.subjects:
        assert (group.positions[name] == planted.columns[name]).all()
        assert group.spaces[name].roi_names()
        about = json.loads((folder / name / "simulated.json").read_text())
        assert about["complete"]
        assert "BlobGPT" in about["note"]
    assert len({space.hash() for space in group.spaces.values()}) == 3
    image = Image.open(group.train.image(0))
    assert image.size == (64, 64)


def test_shared_and_own_images(group, folder):
    whole = {name: set(group.data[name].image_keys) for name in group.subjects}
    shared = set.intersection(*whole.values())
    assert len(shared) == 12
    assert all(len(ids) == 40 for ids in whole.values())
    first, second = (whole[name] for name in group.subjects[:2])
    assert first & second == shared  # nobody else's
    tests = [Algonauts(folder / name).challenge.image_ids for name in group.subjects]
    assert len(tests[0]) == 4
    assert tests[0].tolist() == tests[1].tolist() == tests[2].tolist()
    rows = [group.data[name].image_keys.tolist().index(min(shared)) for name in group.subjects]
    assert len(set(rows)) > 1  # the same image in other rows
    # 8 of each subject's images are not for training; of the shared 12, 2 are nobody's to train on.
    assert len(group.train) == 3 * (40 - 2 * 3)
    assert len(group.train.unique_rows) == len(group.train) - 2 * 10


def test_responses_are_the_planted_ones(group, planted):
    for name in group.subjects:
        row = planted.subjects.index(name)
        for part in (group.train.of(name), group.val.of(name)):
            ids = [image.split("_")[1] for image in part.image_ids]
            error = part.responses[:] - planted.signal(name, ids)
            sd = planted.noise[row, planted.columns[name]]
            assert abs((error / sd).std() - 1) < 0.1
        part = group.train.of(name)
        ids = [image.split("_")[1] for image in part.image_ids]
        variance = planted.signal(name, ids).var(axis=0)
        assert np.allclose(part.ceiling, variance / (variance + sd**2), atol=1e-5)
    everything, mask = group.train.responses(range(len(group.train)))
    assert 0.8 < everything[mask].var() < 1.2
    assert np.allclose(planted.noise[2] / planted.noise[0], NOISIER)


def test_signal_is_shared_and_own(planted):
    ids = planted.image_ids[5:9]
    both = planted.signal("subj02", ids)
    shared = planted.signal(None, ids)[:, planted.columns["subj02"]]
    latent = planted.latent[5:9]
    own = latent @ planted.own[1].T @ planted.embed[planted.columns["subj02"]].T
    assert np.allclose(both, shared + own, atol=1e-5)
    assert planted.signal("subj01").shape == (len(planted.image_ids), 128)
    with pytest.raises(BrainfastError, match="subj01, subj02, subj03, got 'subj09'"):
        planted.signal("subj09")
    with pytest.raises(BrainfastError, match="nsd-99999"):
        planted.signal("subj01", ["nsd-99999"])


def test_maps_can_be_recovered(tmp_path):
    """Least squares from the latents, a subject at a time, finds shared + own."""
    planted = simulate_group(
        tmp_path / "g", **SMALL | {"n_images": 100, "n_shared": 20, "noise": 0.3}, subjects=2
    )
    group = Group([Algonauts(tmp_path / "g" / name) for name in planted.subjects])
    for row, name in enumerate(planted.subjects):
        part = group.train.of(name)
        ids = [image.split("_")[1] for image in part.image_ids]
        latent = planted.latent[planted.rows(ids)]
        found = np.linalg.lstsq(latent, part.responses[:], rcond=None)[0].T  # [V_s,K]
        truth = planted.embed[planted.columns[name]] @ (planted.shared + planted.own[row])
        other = planted.embed[planted.columns[name]] @ (planted.shared + planted.own[1 - row])
        r = np.corrcoef(found.ravel(), truth.ravel())[0, 1]
        assert r > 0.95
        assert r > np.corrcoef(found.ravel(), other.ravel())[0, 1] + 0.1


@pytest.mark.parametrize(("individuality", "alike"), [(0.0, True), (1.0, False)])
def test_individuality(tmp_path, individuality, alike):
    planted = simulate_group(tmp_path / "g", **SMALL, subjects=2, individuality=individuality)
    first, second = (planted.shared + own for own in planted.own)
    r = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert (r > 0.999) == alike
    assert np.abs(planted.shared).max() == 0 or alike


def test_texts_carry_the_latents(folder, group, planted):
    text = TextEmbeddings.read(folder / "text.safetensors")
    assert text.image_ids == planted.image_ids
    assert text.text_dim == 32
    # A linear map fitted on the training images finds a held-out image's text by its latent.
    train = sorted(set(group.train.image_ids))
    tests = sorted(set(group.val.image_ids) | set(group.heldout.image_ids))
    weight = np.linalg.lstsq(planted.latent[planted.rows(train)], text.of(train), rcond=None)[0]
    guess, truth = planted.latent[planted.rows(tests)] @ weight, text.of(tests)
    distance = ((guess[:, None] - truth[None]) ** 2).sum(axis=2)
    hits = (distance.argmin(axis=1) == np.arange(len(tests))).mean()
    assert hits > 0.8 > 5 / len(tests)


def test_repeats_and_changes_with_the_seed(tmp_path, folder, planted):
    again = simulate_group(tmp_path / "again", **SMALL)
    assert (again.embed == planted.embed).all()
    for name in ("subj02/training_split/training_fmri/lh_training_fmri.npy", "text.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    other = simulate_group(tmp_path / "other", **SMALL, seed=1)
    assert not np.array_equal(other.latent, planted.latent)


def test_an_earlier_group_is_replaced_and_other_files_are_not(tmp_path):
    simulate_group(tmp_path / "g", **SMALL)
    simulate_group(tmp_path / "g", **SMALL, subjects=1)
    assert sorted(path.name for path in (tmp_path / "g").glob("subj*")) == ["subj01"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BrainfastError, match="choose another name"):
        simulate_group(tmp_path / "mine", **SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_latents_from_tokens(tmp_path):
    asked = []

    def features(paths):
        asked.extend(paths)
        return np.random.default_rng(0).standard_normal((len(paths), 5, 3))

    planted = simulate_group(tmp_path / "g", **SMALL, features=features)
    assert len(asked) == len(planted.image_ids) == 12 + 3 * 28 + 4
    with pytest.raises(BrainfastError, match=r"features: expected tokens \[100,T,C\]"):
        simulate_group(tmp_path / "h", **SMALL, features=lambda paths: np.ones((3, 2)))
    with pytest.raises(BrainfastError, match="images that differ"):
        simulate_group(tmp_path / "i", **SMALL, features=lambda p: np.ones((len(p), 2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": 0}, "subjects: expected 1 to 9, got 0"),
        ({"n_images": 5}, "n_images: expected 20 to"),
        ({"n_shared": 41}, "n_shared: expected 0 to 40, got 41"),
        ({"latent": 0}, "latent: expected at least 1"),
        ({"components": 0}, "components"),
        ({"text_dim": 0}, "text_dim"),
        ({"individuality": 1.5}, "individuality: expected 0 to 1, got 1.5"),
        ({"noise": -1.0}, "noise"),
        ({"text_noise": float("nan")}, "text_noise"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(BrainfastError, match=message):
        simulate_group(tmp_path / "g", **SMALL | options)
    assert not (tmp_path / "g").exists()


def test_damaged_planted_values(tmp_path, folder):
    (tmp_path / "planted_group.json").write_text('{"complete": false}')
    (tmp_path / "planted_group.safetensors").write_bytes(
        (folder / "planted_group.safetensors").read_bytes()
    )
    with pytest.raises(BrainfastError, match="planted values"):
        PlantedGroup.load(tmp_path)
