import numpy as np
import pytest

from brainfast.data import Arrays
from brainfast.errors import BrainfastError
from brainfast.vertex_space import VertexSpace

N, V = 40, 6


def make(**options):
    random = np.random.default_rng(0)
    given = {
        "images": random.integers(0, 256, (N, 5, 4, 3), dtype=np.uint8),
        "responses": random.standard_normal((N, V)),
        "coordinates": random.standard_normal((V, 3)),
    }
    given |= options
    return given, Arrays(**given)


def test_own_arrays():
    mask = np.array([True, False, True, False, False, False])
    rois = {"V1": mask, "mine": np.array([5, 1])}
    given, data = make(rois=rois, ceiling=np.full(V, 0.5), subject="lab01")
    assert data.space.name == "custom"
    assert data.subject == "lab01"
    assert data.space.roi("V1").tolist() == [0, 2]
    assert data.space.roi("mine").tolist() == [1, 5]
    assert data.challenge is None
    rows = []
    for split in (data.train, data.val, data.heldout):
        for number, image_id in enumerate(split.image_ids):
            row = int(image_id.split("-")[1])
            rows.append(row)
            assert (split.images[number] == given["images"][row]).all()
            assert np.allclose(split.responses[number], given["responses"][row], atol=1e-6)
        assert split.responses.dtype == np.float32
        assert (split.ceiling == 0.5).all()
    assert sorted(rows) == list(range(N))
    assert (data.coordinates == given["coordinates"].astype(np.float32)).all()


def test_without_ceiling():
    data = make()[1]
    assert data.train.ceiling is None
    assert "ceiling" in data.train.ceiling_reason


def test_vertices_on_a_mesh_need_no_coordinates():
    space = VertexSpace("fsaverage5", [1, 2, 3, 4], [0, 9], {"V1": np.arange(V) < 2})
    data = make(coordinates=None, space=space, rois={"EBA": np.arange(V) == 5})[1]
    assert data.coordinates.shape == (V, 3)
    assert data.space.roi_names() == ["V1", "EBA"]
    with pytest.raises(BrainfastError, match="no mesh"):
        make(coordinates=None)


def test_coordinates_from_a_file(tmp_path):
    np.save(tmp_path / "c.npy", np.eye(V, 3))
    assert (make(coordinates=tmp_path / "c.npy")[1].coordinates == np.eye(V, 3)).all()


def test_paths_are_named_after_their_files():
    data = make(images=[f"a/{n}.png" for n in range(N)])[1]
    assert sorted(data.train.image_ids[:3]) == sorted(
        p.split("/")[1][:-4] for p in data.train.images[:3]
    )
    twins = make(images=[f"{n % 2}/{n // 2}.png" for n in range(N)])[1]
    assert "/" in twins.train.image_ids[0]


def test_repeats_and_groups():
    image_ids = [f"face{n % 10}" for n in range(N)]
    data = make(image_ids=image_ids)[1]
    sides = [set(split.image_ids) for split in (data.train, data.val, data.heldout)]
    assert sum(map(len, sides)) == 10
    grouped = make(image_ids=image_ids, groups={f"face{n}": str(n % 3) for n in range(10)})[1]
    assert grouped.split_hash != data.split_hash
    assert len(set(grouped.val.image_ids)) >= 3


def test_memory_map_is_not_read_whole(tmp_path):
    values = np.zeros((500, V), dtype=np.float32)
    values[101] = np.nan
    np.save(tmp_path / "r.npy", values)
    mapped = np.load(tmp_path / "r.npy", mmap_mode="r")
    images = [f"{n}.png" for n in range(500)]
    data = make(images=images, responses=mapped)[1]
    (holed,) = [s for s in (data.train, data.val, data.heldout) if "101" in s.image_ids]
    with pytest.raises(BrainfastError, match="NaN"):
        holed.responses.check()
    with pytest.raises(BrainfastError, match="NaN or infinity in 6 of 6"):
        make(images=images, responses=values)


@pytest.mark.parametrize(
    "options",
    [
        {"responses": np.zeros((N - 1, V))},
        {"responses": np.zeros((N, V), dtype=int)},
        {"responses": np.zeros(N)},
        {"responses": np.full((N, V), np.inf)},
        {"responses": np.zeros((N, 0))},
        {"coordinates": np.zeros((V + 1, 3))},
        {"coordinates": np.full((V, 3), np.nan)},
        {"rois": {"A": np.ones(V - 1, dtype=bool)}},
        {"rois": {"A": np.array([V])}},
        {"space": VertexSpace("fsaverage5", [1], [2])},
        {"image_ids": ["a"]},
        {"groups": ["a"]},
        {"ceiling": np.full(V, 50.0)},
        {"ceiling": np.full(V - 1, 0.5)},
        {"ceiling": np.full(V, np.nan)},
        {"fractions": (0.5, 0.5)},
    ],
)
def test_bad_input(options):
    with pytest.raises(BrainfastError) as caught:
        make(**options)
    assert "\n" not in str(caught.value)
