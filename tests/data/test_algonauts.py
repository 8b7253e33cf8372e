import os
import pickle
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from brainfast.data import Algonauts
from brainfast.errors import BrainfastError

PARTS = ("train", "val", "heldout")


def read(folder, **options):
    return Algonauts(folder.path, **{"coordinates": "fsaverage5", **options})


def test_reads_what_is_there(folder):
    data = read(folder)
    assert data.subject == data.space.subject == "subj01"
    assert data.space.name == "fsaverage"
    assert (data.space.lh == folder.lh).all()
    assert (data.space.rh == folder.rh).all()
    assert data.coordinates.shape == (9, 3)
    seen = {}
    for name in PARTS:
        split = getattr(data, name)
        assert split.name == name
        assert len(split) == len(split.images) == len(split.responses) == len(split.image_ids)
        for row, image in enumerate(split.images):
            assert image.stem == split.image_ids[row]
            number = int(image.name[6:10])
            assert Image.open(image).size == (8, 8)
            assert (split.responses[row] == folder.fmri[number - 1]).all()
            seen[number] = name
    assert sorted(seen) == list(range(1, 13))
    assert len({data.train.hash, data.val.hash, data.heldout.hash, data.challenge.hash}) == 4


def test_regions(folder):
    space = read(folder).space
    labels = folder.labels["prf-visualrois"]
    assert space.roi("V1v").tolist() == np.flatnonzero(labels == 1).tolist()
    assert space.roi("V1").tolist() == np.flatnonzero((labels == 1) | (labels == 2)).tolist()
    assert space.roi("Mfs-words").tolist() == [1]
    for absent in ("OVWFA", "rh.mfs-words", "PPA", "Unknown"):
        with pytest.raises(BrainfastError, match="subj01 has"):
            space.roi(absent)


def test_responses_index_like_an_array(folder):
    responses = read(folder, fractions=(1, 0, 0)).train.responses
    assert responses.shape == folder.fmri.shape
    for index in (3, -1, slice(2, 9, 3), [4, 0, 4], np.array([5]), np.arange(12) % 2 == 0):
        found = responses[index]
        assert found.dtype == np.float32
        assert found.shape == folder.fmri[index].shape
        assert (found == folder.fmri[index]).all()
    assert (np.asarray(responses) == folder.fmri).all()
    with pytest.raises(IndexError):
        responses[12]
    found[:] = 0  # a copy: the file is left alone
    assert (responses[:] == folder.fmri).all()


def test_responses_stay_on_disk(folder, monkeypatch):
    opened = []
    load = np.load

    def spy(path, **options):
        opened.append((str(path), options.get("mmap_mode")))
        return load(path, **options)

    monkeypatch.setattr(np, "load", spy)
    read(folder)
    fmri = [mode for path, mode in opened if "training_fmri" in path]
    assert fmri == ["r", "r"]


@pytest.mark.parametrize("sizes", [(5, 4), (3, 7), (1, 1)])
def test_ragged_subjects(write_folder, sizes):
    folder = write_folder("subj06", n=10 + sizes[0], lh=sizes[0] + 1, rh=sizes[1] + 1)
    data = read(folder)
    assert sum(sizes) + 2 == data.space.V
    assert sum(len(getattr(data, name)) for name in PARTS) == 10 + sizes[0]


def test_split_does_not_move(folder):
    one, two = read(folder, seed=3), read(folder, seed=3)
    assert one.split_hash == two.split_hash != read(folder, seed=4).split_hash
    assert one.train.hash == two.train.hash
    assert (one.val.image_ids == two.val.image_ids).all()


def test_images_on_one_side_for_every_subject(write_folder):
    """NSD's ids decide, whatever row an image has."""
    one = read(write_folder("subj01", n=40, nsd=1))
    two = read(write_folder("subj02", n=20, nsd=2))
    sides = [
        {image[-9:]: name for name in PARTS for image in getattr(data, name).image_ids}
        for data in (one, two)
    ]
    assert all(sides[0][image] == side for image, side in sides[1].items())


def test_groups(folder):
    groups = {f"train-{n + 1:04d}_nsd-{7 * n:05d}": f"g{n % 4}" for n in range(12)}
    data = read(folder, groups=groups)
    sides = [{groups[i] for i in getattr(data, name).image_ids} for name in PARTS]
    assert sum(map(len, sides)) == 4
    assert all(sides)


def test_groups_file_in_the_folder_is_used(folder):
    rows = [f"train-{n + 1:04d}_nsd-{7 * n:05d}.png,g{n % 3},{PARTS[n % 3]}\n" for n in range(12)]
    (folder.path / "groups.csv").write_text("image,group,split\n" + "".join(rows))
    data = read(folder)
    assert [image[6:10] for image in data.heldout.image_ids] == ["0003", "0006", "0009", "0012"]


def test_challenge(folder, organiser):
    data = read(folder)
    assert data.challenge.responses is None
    assert [image.name for image in data.challenge.images] == [
        f"test-{row + 1:04d}_nsd-{7 * row + 1:05d}.png" for row in range(3)
    ]
    assert data.challenge.ceiling is None
    assert "ncsnr" in data.challenge.ceiling_reason
    organiser(folder)
    assert (read(folder).challenge.responses[:] == folder.test_fmri).all()
    shutil.rmtree(folder.path / "test_split")
    assert read(folder).challenge is None


@pytest.mark.parametrize(("scale", "unit"), [(1, "fraction"), (100, "percent")])
def test_organisers_ceiling(folder, organiser, scale, unit):
    ceiling = organiser(folder, scale)
    data = read(folder)
    assert np.allclose(data.heldout.ceiling, ceiling, atol=1e-6)
    assert data.heldout.ceiling.dtype == np.float32
    assert data.heldout.ceiling_reason is None
    assert unit in data.ceiling_source


@pytest.mark.parametrize("value", [-0.1, 100.5, np.nan])
def test_impossible_ceiling(folder, organiser, value):
    organiser(folder)
    path = folder.file("rh_noise_ceiling.npy")
    values = np.load(path)
    values[2] = value
    np.save(path, values)
    with pytest.raises(BrainfastError, match=r"rh_noise_ceiling\.npy"):
        read(folder)


@pytest.mark.parametrize("kind", ["mgh", "npy", "npy-challenge"])
def test_ceiling_from_ncsnr(folder, organiser, tmp_path, kind):
    """ncsnr 1 and three repeats: 1 / (1 + 1/3); it goes before the organiser's files."""
    organiser(folder)
    (tmp_path / "noise").mkdir()
    ratio = np.linspace(0, 2, 9).astype(np.float32)
    for side, vertices, part in (("lh", folder.lh, ratio[:5]), ("rh", folder.rh, ratio[5:])):
        whole = np.full(163842, 9, dtype=np.float32)
        whole[vertices] = part
        if kind == "mgh":
            image = nibabel.MGHImage(whole.reshape(-1, 1, 1), np.eye(4))
            nibabel.save(image, tmp_path / "noise" / f"{side}.ncsnr.mgh")
        else:
            np.save(tmp_path / "noise" / f"{side}.ncsnr.npy", part if "-" in kind else whole)
    data = read(folder, ncsnr=tmp_path / "noise")
    assert np.allclose(data.val.ceiling, ratio**2 / (ratio**2 + 1 / 3), atol=1e-6)
    assert "ncsnr" in data.ceiling_source
    mixed = read(folder, ncsnr=tmp_path / "noise", repeats=(4, 2, 2))
    spread = (2 / 3 + 2 / 2 + 4) / 8
    assert np.allclose(mixed.val.ceiling, ratio**2 / (ratio**2 + spread), atol=1e-6)


@pytest.mark.parametrize("values", [np.ones(4, "f4"), -np.ones(5, "f4"), np.full(5, np.nan, "f4")])
def test_bad_ncsnr(folder, tmp_path, values):
    with pytest.raises(BrainfastError, match=r"lh\.ncsnr\.npy.*no such file"):
        read(folder, ncsnr=tmp_path)
    np.save(tmp_path / "lh.ncsnr.npy", values)
    np.save(tmp_path / "rh.ncsnr.npy", np.ones(4, "f4"))
    with pytest.raises(BrainfastError, match=r"lh\.ncsnr\.npy"):
        read(folder, ncsnr=tmp_path)
    (tmp_path / "lh.ncsnr.mgh").write_bytes(b"no image")
    with pytest.raises(BrainfastError, match=r"lh\.ncsnr\.mgh"):
        read(folder, ncsnr=tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "lh_training_fmri.npy",
        "rh_training_fmri.npy",
        "lh.all-vertices_fsaverage_space.npy",
        "rh.floc-words_challenge_space.npy",
        "mapping_prf-visualrois.npy",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "other kind", "other shape"])
def test_damaged_file_is_named(folder, pattern, damage):
    path = folder.file(pattern)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other kind":
        np.save(path, np.full(np.load(path, allow_pickle=True).shape, "text"))
    elif damage == "other shape":
        np.save(path, np.zeros((3, 2, 1)))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "short" else b"")
    with pytest.raises(BrainfastError) as caught:
        read(folder)
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_atlas_is_no_error(folder):
    for path in folder.path.rglob("*floc-words*"):
        path.unlink()
    assert "mfs-words" not in read(folder).space.roi_names()


def test_hostile_mapping_is_refused(folder, tmp_path):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    inside = np.empty((), dtype=object)
    inside[()] = Attack()
    np.save(folder.file("mapping_floc-words.npy"), inside, allow_pickle=True)
    with pytest.raises(BrainfastError, match=r"mapping_floc-words\.npy"):
        read(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Attack()))
    assert marker.exists()


def resave(folder, pattern, change):
    path = folder.file(pattern)
    np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        ("rh_training_fmri.npy", lambda a: a[:, :-1], r"expected 4 vertices.* got 3"),
        ("lh_training_fmri.npy", lambda a: a[:-2], r"as many rows in lh as in rh, got 10 and 12"),
        ("lh.all-vertices_fsaverage_space.npy", lambda a: a * 2, "a mask of 0 and 1"),
        ("lh.all-vertices_fsaverage_space.npy", lambda a: a[:10242], r"\[163842\], got"),
        ("lh.prf-visualrois_challenge_space.npy", lambda a: a[:-1], "5 region numbers"),
        ("lh.prf-visualrois_challenge_space.npy", lambda a: a + 90, "a name for every region"),
        ("lh.prf-visualrois_challenge_space.npy", lambda a: a + 0.5, "5 region numbers"),
    ],
)
def test_files_that_do_not_fit(folder, pattern, change, message):
    resave(folder, pattern, change)
    with pytest.raises(BrainfastError, match=message):
        read(folder)


def test_rows_must_match_images(folder):
    for side in ("lh", "rh"):
        resave(folder, f"{side}_training_fmri.npy", lambda a: a[:-1])
    with pytest.raises(BrainfastError, match=r"training_fmri: expected 12 rows.* got 11"):
        read(folder)


def test_test_rows_must_match_images(folder, organiser):
    organiser(folder)
    for side in ("lh", "rh"):
        resave(folder, f"{side}_test_fmri.npy", lambda a: a[:-1])
    with pytest.raises(BrainfastError, match=r"test_fmri: expected 3 rows"):
        read(folder)


def test_image_files(folder):
    images = folder.path / "training_split" / "training_images"
    (images / ".DS_Store").write_bytes(b"")
    read(folder)
    for odd in ("notes.txt", "train-13_nsd-00001.png", "test-0001_nsd-00001.png"):
        (images / odd).write_bytes(b"")
        with pytest.raises(BrainfastError, match="take this file out") as caught:
            read(folder)
        assert odd in str(caught.value)
        (images / odd).unlink()
    twin = images / "train-0003_nsd-00099.png"
    twin.write_bytes(b"")
    with pytest.raises(BrainfastError, match="has the same number"):
        read(folder)
    twin.unlink()
    folder.file("train-0005_*").unlink()
    with pytest.raises(BrainfastError, match="an image with number 0005, got no such file"):
        read(folder)
    shutil.rmtree(images)
    with pytest.raises(BrainfastError, match="training_images"):
        read(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_holes_in_responses(write_folder, value):
    """Met on opening where the few rows probed hold them, and always on reading or checking."""
    folder = write_folder(n=700)

    def spoil(rows):
        def change(array):
            array[rows, 1:3] = value
            return array

        resave(folder, "lh_training_fmri.npy", change)

    spoil([13])
    data = read(folder, fractions=(1, 0, 0))
    assert (data.train.responses[14] == folder.fmri[14]).all()
    message = r"training_fmri: expected finite responses, got NaN or infinity in 2 of 9 vertices; "
    with pytest.raises(BrainfastError, match=message):
        data.train.responses[[12, 13]]
    with pytest.raises(BrainfastError, match=message):
        data.train.responses.check()
    spoil(slice(None))
    with pytest.raises(BrainfastError, match=message):
        read(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(BrainfastError, match="no such folder"):
        Algonauts(tmp_path / "subj09")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrainfastError, match=r"lh\.all-vertices_fsaverage_space\.npy"):
        Algonauts(tmp_path / "empty")


def test_coordinates_given(folder):
    given = np.arange(27.0).reshape(9, 3)
    assert (read(folder, coordinates=given).coordinates == given).all()
    with pytest.raises(BrainfastError, match=r"\[9,3\]"):
        read(folder, coordinates=given[:5])
