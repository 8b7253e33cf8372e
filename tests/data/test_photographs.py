import hashlib

import numpy as np
import pytest

from brainfast.data.photographs import SCENES, cut, load_photograph, photograph_path
from brainfast.errors import BrainfastError


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_is_inside_its_wheel(name):
    photograph = load_photograph(name)
    assert photograph.dtype == np.uint8
    assert photograph.shape[2] == 3
    assert min(photograph.shape[:2]) >= 300
    assert not (photograph[..., 0] == photograph[..., 1]).all()  # in colour


def test_scenes_differ():
    assert (
        len({hashlib.sha256(photograph_path(name).read_bytes()).digest() for name in SCENES}) == 7
    )


def test_unknown_or_missing(monkeypatch):
    with pytest.raises(BrainfastError, match="astronaut, chelsea"):
        photograph_path("lena")
    monkeypatch.setitem(SCENES, "china", ("sklearn", "datasets/images/gone.jpg"))
    with pytest.raises(BrainfastError, match="install scikit-image"):
        photograph_path("china")
    monkeypatch.setitem(SCENES, "china", ("no_such_package", "china.jpg"))
    with pytest.raises(BrainfastError, match="install scikit-image"):
        photograph_path("china")


def test_cut_is_deterministic_and_varied():
    photograph = load_photograph("chelsea")
    one, two, other = (cut(photograph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (425, 425, 3)
    assert one.dtype == np.uint8
    assert (one == two).all()
    assert np.abs(one.astype(int) - other).mean() > 10


def test_cut_takes_a_square_part():
    """On a ramp, left to right, the values across a crop tell its side, place and mirroring."""
    ramp = np.repeat(np.linspace(20, 220, 300)[None, :, None], 200, axis=0).repeat(3, axis=2)
    spans, slopes = [], []
    for seed in range(60):
        row = cut(ramp.astype(np.uint8), np.random.default_rng(seed), size=50)[25, :, 0].astype(int)
        spans.append(abs(row[-1] - row[0]) / 200 * 300)  # in pixels of the photograph
        slopes.append(np.sign(row[-1] - row[0]))
    assert 0.35 * 200 * 0.7 < min(spans) < 90
    assert 140 < max(spans) < 200 * 1.2
    assert 15 < sum(slope < 0 for slope in slopes) < 45
