import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from brainfast.data import Algonauts
from brainfast.data.simulated import Planted, plant, recovery, respond, write_subject
from brainfast.data.simulated_cortex import edge_graph, visual_cortex
from brainfast.data.simulated_files import (
    CHALLENGE_SOURCE,
    HELDOUT_SOURCE,
    TRAIN_SOURCES,
    VALIDATION_SOURCE,
    write_images,
)
from brainfast.errors import BrainfastError
from brainfast.surfaces import mesh
from brainfast.tokens import Tokens
from brainfast.vertex_space import ATLASES

LAYERS, CHANNELS = (0, 2, 5), (6, 4, 5)


def random_tokens(N, seed=0):
    random = np.random.default_rng(seed)
    local = [3 + 2 * random.standard_normal((N, C, 8, 8)) for C in CHANNELS]
    global_ = [random.standard_normal((N, C)) - 1 for C in CHANNELS]
    return Tokens(
        tuple(t.astype(np.float32) for t in local),
        tuple(t.astype(np.float32) for t in global_),
        LAYERS,
    )


# The cortex


@pytest.mark.parametrize("side", ["lh", "rh"])
def test_retinotopy(side):
    """Left hemisphere: right of the image; dorsal: below; V1 from the fovea forwards: outwards."""
    cortex = visual_cortex()
    x, y = cortex.position.T
    columns = cortex.space.lh_slice if side == "lh" else cortex.space.rh_slice
    across = x[columns] if side == "lh" else -x[columns]
    assert (across > 0).mean() > 0.99
    for area in ("V1", "V2", "V3"):
        lower, upper = (y[cortex.space.roi(f"{side}.{area}{half}")] for half in "dv")
        assert lower.mean() > 0.05 > -0.05 > upper.mean()
    assert np.abs(cortex.position).max() <= 0.8
    rows = cortex.space.roi(f"{side}.V1")
    start = 0 if side == "lh" else cortex.space.lh.size
    forwards = mesh("fsaverage5", "white", side).coordinates[
        getattr(cortex.space, side)[rows - start], 1
    ]
    assert pearsonr(forwards, np.linalg.norm(cortex.position[rows], axis=1))[0] > 0.8


def test_hierarchy():
    cortex = visual_cortex()
    assert cortex.space.name == "fsaverage5"
    assert 2000 < cortex.space.V < 4000
    order = ["V1", "V2", "hV4", "OPA", "FFA-1", "EBA"]
    levels = [cortex.level[cortex.space.roi(name)].mean() for name in order]
    assert (np.diff(levels) > 0.05).all()
    assert levels[0] < 0.1
    assert levels[-1] > 0.9
    assert cortex.scale[cortex.space.roi("V1")].mean() < 0.2
    assert cortex.scale[cortex.space.roi("PPA")].mean() > 0.8
    assert ((cortex.scale > 0) & (cortex.scale < 1)).all()


def test_smooth_over_the_mesh():
    cortex = visual_cortex()
    for side, columns in (("lh", cortex.space.lh_slice), ("rh", cortex.space.rh_slice)):
        white = mesh("fsaverage5", "white", side)
        graph = edge_graph(white.coordinates.astype(float), white.faces)
        vertices = getattr(cortex.space, side)
        ends = graph[vertices][:, vertices].tocoo()
        values = np.column_stack([cortex.level, cortex.scale, cortex.position])[columns]
        steps = np.abs(values[ends.row] - values[ends.col])
        assert np.quantile(steps, 0.99) < 0.15
        start, end = white.coordinates[vertices[ends.row]], white.coordinates[vertices[ends.col]]
        assert np.allclose(ends.data, np.linalg.norm(start - end, axis=1), atol=1e-4)


def test_regions():
    space = visual_cortex().space
    for names in ATLASES.values():
        here = [space.rois[name].astype(int) for name in names if name in space.rois]
        assert sum(here).max() == 1  # one region of an atlas a vertex, as its files can hold
    assert space.roi("lh.VWFA").size > 5
    for absent in ("rh.VWFA", "FFA-3", "aTL-faces"):
        with pytest.raises(BrainfastError):
            space.roi(absent)
    streams = np.any([space.rois[name] for name in ATLASES["streams"]], axis=0)
    assert streams.mean() > 0.7


# What is planted


def test_plant():
    planted = plant(range(5), (3,) * 5, dim=16, seed=3)
    assert np.allclose(planted.layer.sum(axis=1), 1, atol=1e-6)
    best = planted.layer.argmax(axis=1)
    assert np.median(best[planted.vertices.roi("V1")]) == 0
    assert np.median(best[planted.vertices.roi("EBA")]) == 4
    assert np.allclose(planted.weight.std(axis=1), 1, atol=1e-4)
    assert np.abs(planted.weight.mean()) < 0.05
    assert [matrix.shape for matrix in planted.bottleneck] == [(16, 3)] * 5
    assert 0.4 < planted.ceiling.min() < planted.ceiling.max() < 0.97
    assert np.allclose(planted.ceiling, planted.ncsnr**2 / (planted.ncsnr**2 + 1 / 3), atol=1e-6)
    again, other = (plant(range(5), (3,) * 5, dim=16, seed=seed) for seed in (3, 4))
    assert (again.weight == planted.weight).all()
    assert not (other.weight == planted.weight).any()
    noisy = plant(range(5), (3,) * 5, dim=16, seed=3, noise=2)
    assert np.allclose(noisy.ncsnr * 2, planted.ncsnr)


def test_plant_few_vertices_and_one_layer():
    planted = plant((7,), (3,), dim=1, vertices=40)
    assert planted.vertices.V == 40
    assert (planted.layer == 1).all()
    assert np.isfinite(planted.weight).all()
    whole = visual_cortex().space
    assert set(planted.vertices.lh) <= set(whole.lh)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": ()},
        {"channels": (3,)},
        {"dim": 0},
        {"noise": 0},
        {"noise": float("nan")},
        {"vertices": 1},
        {"vertices": 10**6},
    ],
)
def test_plant_refuses(options):
    with pytest.raises(BrainfastError):
        plant(**{"layers": (0, 1), "channels": (3, 3)} | options)


def test_planted_round_trip(tmp_path):
    planted = plant(LAYERS, CHANNELS, dim=4, vertices=30)
    planted.save(tmp_path)
    back = Planted.load(tmp_path)
    assert back.vertices == planted.vertices
    assert back.vertices.roi_names() == planted.vertices.roi_names()
    assert back.layers == LAYERS
    for name in ("space", "layer", "scale", "weight", "ncsnr"):
        assert (getattr(back, name) == getattr(planted, name)).all()
    assert all((a == b).all() for a, b in zip(back.bottleneck, planted.bottleneck, strict=True))
    (tmp_path / "planted.json").write_text(json.dumps({"layers": [1], "vertices": {}}))
    with pytest.raises(BrainfastError):
        Planted.load(tmp_path)


# Responses


def bilinear(grid, x, y):
    """Value of grid [...,8,8] at x, y in -1..1 of its outer edges; zero outside."""
    column, row = (x + 1) * 4 - 0.5, (y + 1) * 4 - 0.5
    total = 0
    for j in (int(np.floor(row)), int(np.floor(row)) + 1):
        for i in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < 8 and 0 <= j < 8:
                total = total + (1 - abs(row - j)) * (1 - abs(column - i)) * grid[..., j, i]
    return total


def test_responses_follow_the_equation():
    planted = plant(LAYERS, CHANNELS, dim=7, vertices=12, noise=1e-4)
    tokens, train = random_tokens(30), np.arange(5, 25)
    found = respond(planted, tokens, train)
    want = np.zeros((30, 12))
    for index, (local, global_) in enumerate(zip(tokens.local, tokens.global_, strict=True)):
        matrix = planted.bottleneck[index].astype(float)
        near, whole = local[train].astype(float), global_[train].astype(float)
        patch = (local - near.mean((0, 2, 3))[:, None, None]) / near.std((0, 2, 3))[:, None, None]
        patch = np.einsum("dc,nchw->ndhw", matrix, patch)
        summary = (global_ - whole.mean(0)) / whole.std(0) @ matrix.T
        for v in range(12):
            scale = float(planted.scale[v])
            mixed = (1 - scale) * bilinear(patch, *planted.space[v]) + scale * summary
            want[:, v] += planted.layer[v, index] * (mixed * planted.weight[v]).mean(axis=1)
    want = (want - want[train].mean(0)) / want[train].std(0)
    assert found.dtype == np.float32
    assert np.abs(found - want).max() < 2e-3


def test_noise_is_what_the_ceiling_says():
    """With n images, r^2 of signal and measurement is the ceiling, give or take 2/sqrt(n)."""
    tokens, train = random_tokens(400), np.arange(400)
    noisy, clean = (plant(LAYERS, CHANNELS, vertices=200, noise=noise) for noise in (1, 1e-4))
    measured, signal = respond(noisy, tokens, train), respond(clean, tokens, train)
    r = (measured * signal).mean(0) / (measured.std(0) * signal.std(0))
    assert np.abs(r**2 - noisy.ceiling).mean() < 0.04
    assert abs((r**2 - noisy.ceiling).mean()) < 0.01
    assert abs(measured.std(axis=0).mean() - 1) < 0.02
    assert (measured == respond(noisy, tokens, train)).all()
    assert not (measured == respond(noisy, tokens, train, seed=1)).any()


def test_respond_refuses():
    planted = plant((0, 1, 2), CHANNELS, dim=4, vertices=10)
    with pytest.raises(BrainfastError, match="layers"):
        respond(planted, random_tokens(4), np.arange(4))
    planted = plant(LAYERS, CHANNELS, dim=4, vertices=10)
    still = Tokens(
        tuple(np.ones((4, C, 8, 8), np.float32) for C in CHANNELS),
        tuple(np.ones((4, C), np.float32) for C in CHANNELS),
        LAYERS,
    )
    with pytest.raises(BrainfastError, match="10 vertices that never change"):
        respond(planted, still, np.arange(4))


# Files


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "subj01"
    seen = []
    planted = write_subject(
        folder,
        trunk_tokens=lambda paths: random_tokens(len(paths)),
        n_images=30,
        vertices=150,
        dim=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n + 1, 33) for n in range(33)]
    return folder, planted


def test_subject_reads_like_any_other(subject):
    folder, planted = subject
    data = Algonauts(folder, coordinates="fsaverage5")
    assert [len(split) for split in (data.train, data.val, data.heldout)] == [24, 3, 3]
    assert (data.space.lh == planted.vertices.lh).all()
    assert (data.space.rh == planted.vertices.rh).all()
    assert data.space.roi_names() == planted.vertices.roi_names()
    for name in data.space.roi_names():
        assert (data.space.roi(name) == planted.vertices.roi(name)).all()
    assert np.allclose(data.heldout.ceiling, planted.ceiling)
    tokens = random_tokens(33)
    rows = np.array([int(image[6:10]) - 1 for image in data.train.image_ids])
    want = respond(planted, tokens, rows)
    assert (data.train.responses[:] == want[rows]).all()
    assert (data.challenge.responses[:] == want[30:]).all()
    pixels = np.asarray(Image.open(data.challenge.images[0]))
    assert pixels.shape == (425, 425, 3)


def test_sources_do_not_leak(subject):
    folder, _ = subject
    data = Algonauts(folder, coordinates="fsaverage5")
    table = dict(
        line.split(",")[:2] for line in (folder / "groups.csv").read_text().splitlines()[1:]
    )
    sides = [
        {table[f"{image}.png"] for image in split.image_ids}
        for split in (data.train, data.val, data.heldout)
    ]
    assert sides == [set(TRAIN_SOURCES), {VALIDATION_SOURCE}, {HELDOUT_SOURCE}]
    assert CHALLENGE_SOURCE not in set.union(*sides)


def test_layout(subject):
    """Every file that a real subject has, with numpy's plain reader and the same shapes."""
    folder, planted = subject
    masks = folder / "roi_masks"
    for side in ("lh", "rh"):
        size = getattr(planted.vertices, side).size
        whole = np.load(masks / f"{side}.all-vertices_fsaverage_space.npy")
        assert whole.shape == (163842,)
        assert np.flatnonzero(whole).tolist() == getattr(planted.vertices, side).tolist()
        for atlas, names in ATLASES.items():
            short = np.load(masks / f"{side}.{atlas}_challenge_space.npy")
            long = np.load(masks / f"{side}.{atlas}_fsaverage_space.npy")
            assert (long[whole == 1] == short).all()
            assert long.shape == (163842,)
            mapping = np.load(masks / f"mapping_{atlas}.npy", allow_pickle=True).item()
            assert mapping == dict(enumerate(["Unknown", *names]))
        fmri = np.load(folder / "training_split/training_fmri" / f"{side}_training_fmri.npy")
        assert fmri.dtype == np.float32
        assert fmri.shape == (30, size)
        assert np.load(folder / f"test_split/test_fmri/{side}_test_fmri.npy").shape == (3, size)
    names = sorted(path.name for path in (folder / "training_split/training_images").iterdir())
    assert names == [f"train-{row + 1:04d}_nsd-{row:05d}.png" for row in range(30)]
    names = sorted(path.name for path in (folder / "test_split/test_images").iterdir())
    assert names == [f"test-{row + 1:04d}_nsd-{row + 30:05d}.png" for row in range(3)]
    about = json.loads((folder / "simulated.json").read_text())
    assert about["simulated"]
    assert about["complete"]
    assert "no brain was measured" in about["note"]


def test_images_are_the_same_again_and_replace_old_ones(subject, tmp_path):
    folder, _ = subject
    write_images(tmp_path / "s", n_images=40)
    stimuli = write_images(tmp_path / "s", n_images=30)
    assert len(list((tmp_path / "s").rglob("*.png"))) == 33
    for path in stimuli.paths:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "s")).read_bytes()
    assert not json.loads((tmp_path / "s" / "simulated.json").read_text())["complete"]


def test_measured_data_are_never_overwritten(tmp_path):
    (tmp_path / "training_split").mkdir()
    with pytest.raises(BrainfastError, match="never overwritten"):
        write_images(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training_split"]


def test_write_refuses(tmp_path):
    with pytest.raises(BrainfastError, match="n_images"):
        write_images(tmp_path, n_images=5)
    with pytest.raises(BrainfastError, match="trunk_tokens: expected 22 images, got 4"):
        write_subject(tmp_path / "s", trunk_tokens=lambda paths: random_tokens(4), n_images=20)


# Recovery


def test_recovery_of_the_truth_and_of_nothing():
    planted = plant(LAYERS, CHANNELS, dim=4, vertices=200)
    perfect = recovery(planted, planted.space, planted.layer, planted.scale)
    assert perfect == pytest.approx(
        {
            "layer_r": 1,
            "layer_within_one": 1,
            "space_x_r": 1,
            "space_y_r": 1,
            "space_error": 0,
            "scale_r": 1,
        }
    )
    nothing = recovery(planted, np.zeros((200, 2)), np.full((200, 3), 1 / 3), np.full(200, 0.5))
    assert [nothing[key] for key in ("layer_r", "space_x_r", "space_y_r", "scale_r")] == [0] * 4
    assert nothing["space_error"] > 0.2
    mirrored = recovery(planted, planted.space * [-1, 1], planted.layer[:, ::-1], -planted.scale)
    assert mirrored["space_x_r"] == pytest.approx(-1)
    assert mirrored["space_y_r"] == pytest.approx(1)
    assert mirrored["layer_r"] == pytest.approx(-1)
    assert mirrored["layer_within_one"] < 0.6


def test_recovery_leaves_global_vertices_out_of_space():
    planted = plant(LAYERS, CHANNELS, dim=4, vertices=200)
    space = planted.space.copy()
    space[planted.scale >= 0.8] = 9
    assert (planted.scale >= 0.8).sum() > 5
    assert recovery(planted, space, planted.layer, planted.scale)["space_error"] == 0


def test_recovery_of_some_vertices():
    planted = plant(LAYERS, CHANNELS, dim=4, vertices=200)
    some = np.arange(0, 200, 3)
    found = recovery(
        planted, planted.space[some], planted.layer[some], planted.scale[some], vertices=some
    )
    assert found["scale_r"] == pytest.approx(1)
    with pytest.raises(BrainfastError, match=r"space: expected \[200, 2\], got \[67, 2\]"):
        recovery(planted, planted.space[some], planted.layer[some], planted.scale[some])
