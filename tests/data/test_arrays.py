import numpy as np
import pytest
from PIL import Image

from brainfast.data import Arrays
from brainfast.data.splits import NAMES, split_by_image
from brainfast.errors import BrainfastError
from brainfast.images import as_images
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


def repeated(form, folder):
    """N images that show 12 pictures in turn: arrays, files of other names, or every other one."""
    pictures = np.random.default_rng(1).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    shown = pictures[np.arange(N) % 12]
    if form == "arrays":
        return shown
    paths = [folder / f"{row}.png" for row in range(N)]
    for path, image in zip(paths, shown, strict=True):
        Image.fromarray(image).save(path)
    return paths if form == "files" else [(paths, shown)[n // 12 % 2][n] for n in range(N)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["arrays", "files", "files and arrays"])
def test_repeats_without_ids_stay_on_one_side(form, seed, tmp_path):
    data = make(images=repeated(form, tmp_path), seed=seed)[1]
    sides = {}
    for name in NAMES:
        for image in getattr(data, name).images:
            sides.setdefault(as_images(image)[0].tobytes(), []).append(name)
    assert len(sides) == 12
    assert sum(map(len, sides.values())) == N
    assert all(len(set(where)) == 1 for where in sides.values())


def test_images_shown_once_lie_where_their_names_say(tmp_path):
    """Models that were trained before repeats were looked for know these splits."""
    random = np.random.default_rng(3)
    arrays = random.integers(0, 256, (N, 5, 4, 3), dtype=np.uint8)
    paths = [tmp_path / f"{row}.png" for row in range(N)]
    for row, path in enumerate(paths):
        path.write_bytes(random.bytes(9 + row % 3))  # alike in size, not in content, and no images
    names = {"arrays": [f"image-{row:06d}" for row in range(N)], "files": [p.stem for p in paths]}
    for form, images in (("arrays", arrays), ("files", paths)):
        data = make(images=images, seed=5)[1]
        for side, rows in split_by_image(names[form], (0.8, 0.1, 0.1), 5).items():
            assert getattr(data, side).image_ids.tolist() == [names[form][row] for row in rows]


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
        {"rois": {"A": np.array([0, 1, 1, 0, 0, 0])}},
        {"images": np.zeros((N, 5, 4, 3), np.uint8)},
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
