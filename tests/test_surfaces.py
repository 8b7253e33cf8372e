import nibabel
import numpy as np
import pytest
from nilearn.datasets import load_fsaverage

from brainfast import surfaces
from brainfast.errors import BrainfastError
from brainfast.surfaces import coordinates, mesh, mesh_data, side_by_side
from brainfast.vertex_space import VertexSpace

FACES = np.array([[0, 1, 2]])


def points(*x):
    return np.array([[value, 1, 2] for value in x], dtype=np.float32)


def test_shift_by_hand():
    """lh.x from -4 to 6: limit = -4 + 1.5 * 10 = 11, so rh's smallest x, -3, moves to 11."""
    left, right = side_by_side(points(-4, 0, 6), points(5, -3, 0))
    assert left[:, 0].tolist() == [-4, 0, 6]
    assert right[:, 0].tolist() == [19, 11, 14]
    assert right[:, 1:].tolist() == [[1, 2]] * 3


def test_no_shift_where_far_apart():
    for smallest in (11, 12):
        right = side_by_side(points(-4, 6), points(30, smallest))[1]
        assert right[:, 0].tolist() == [30, smallest]


def test_shift_does_not_change_its_input():
    right = points(0, 1)
    side_by_side(points(0, 1), right)
    assert right[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(("surface", "part"), [("inflated", "inflated"), ("sphere", "sphere")])
def test_fsaverage5_shifts_whole_meshes_first(surface, part, monkeypatch):
    """The vertices taken do not hold the mesh's extremes, so the order of steps shows."""
    monkeypatch.setattr(surfaces, "fetch_surf_fsaverage", no_download)
    parts = load_fsaverage("fsaverage5")[part].parts
    left, right = (np.asarray(parts[side].coordinates) for side in ("left", "right"))
    low, high = left[:, 0].min(), left[:, 0].max()
    shift = low + 1.5 * (high - low) - right[:, 0].min()
    middle = np.flatnonzero(np.abs(left[:, 0]) < 5)[:20]
    other = np.flatnonzero(np.abs(right[:, 0]) < 5)[:30]
    found = coordinates(VertexSpace("fsaverage5", middle, other), surface)
    assert found.dtype == np.float32
    assert np.allclose(found[:20], left[middle], atol=1e-5)
    assert np.allclose(found[20:], right[other] + [shift, 0, 0], atol=1e-4)


real_fetch = surfaces.fetch_surf_fsaverage


def no_download(name):
    if name != "fsaverage5":
        raise OSError("no route to host\nand a second line")
    return real_fetch(name)


def fsaverage_folder(folder, count=163842):
    """A FreeSurfer surf folder of random meshes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    meshes = {}
    for side in ("lh", "rh"):
        meshes[side] = random.normal(size=(count, 3)).astype(np.float32)
        nibabel.freesurfer.write_geometry(folder / f"{side}.inflated", meshes[side], FACES)
    return meshes


def test_lookup_order(tmp_path, monkeypatch):
    monkeypatch.setattr(surfaces, "fetch_surf_fsaverage", no_download)
    monkeypatch.delenv("SUBJECTS_DIR", raising=False)
    space = VertexSpace("fsaverage", [0, 163841], [7])
    with pytest.raises(BrainfastError, match=r"no route to host\); give coordinates= .*SUBJECTS"):
        coordinates(space)
    near = VertexSpace("fsaverage", [0, 4], [7])
    with pytest.raises(BrainfastError, match="coordinates='fsaverage5'"):
        coordinates(near)
    assert coordinates(near, source="fsaverage5").shape == (3, 3)

    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path / "subjects"))
    found = fsaverage_folder(tmp_path / "subjects" / "fsaverage" / "surf")
    assert np.allclose(coordinates(space)[:2], found["lh"][[0, 163841]], atol=1e-5)

    given = np.arange(9).reshape(3, 3)
    np.save(tmp_path / "mine.npy", given)
    assert (coordinates(space, source=tmp_path / "mine.npy") == given).all()


def test_folder_of_another_mesh(tmp_path):
    fsaverage_folder(tmp_path / "surf", count=50)
    with pytest.raises(BrainfastError, match=r"lh\.inflated: expected a mesh of 10242 vert.* 50"):
        coordinates(VertexSpace("fsaverage5", [1], [2]), source=tmp_path / "surf")


def test_broken_or_absent_surface(tmp_path):
    space = VertexSpace("fsaverage5", [1], [2])
    with pytest.raises(BrainfastError, match=r"lh\.sphere: expected a FreeSurfer surface"):
        coordinates(space, "sphere", tmp_path)
    (tmp_path / "lh.sphere").write_bytes(b"\xff\xff\xfe not quite")
    with pytest.raises(BrainfastError, match=r"lh\.sphere: expected a FreeSurfer surface"):
        coordinates(space, "sphere", tmp_path)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 3)), np.zeros((3, 2)), np.full((3, 3), np.nan), np.array([["a"] * 3] * 3)],
)
def test_coordinates_of_another_subject(tmp_path, array):
    np.save(tmp_path / "other.npy", array)
    with pytest.raises(BrainfastError, match="expected"):
        coordinates(VertexSpace("custom", [0, 1, 2], []), source=tmp_path / "other.npy")


def test_coordinates_file_that_is_not_one(tmp_path):
    space = VertexSpace("custom", [0, 1, 2], [])
    np.save(tmp_path / "pickle.npy", np.array({}, dtype=object), allow_pickle=True)
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY")
    for name in ("pickle", "short", "absent"):
        with pytest.raises(BrainfastError, match=r"expected a \.npy file of \[3,3\]"):
            coordinates(space, source=tmp_path / f"{name}.npy")


@pytest.mark.parametrize("source", [None, "fsaverage5"])
def test_custom_space_needs_a_file(source):
    with pytest.raises(BrainfastError, match="no mesh"):
        coordinates(VertexSpace("custom", [0], [1]), source=source)


def test_fsaverage5_does_not_serve_all_of_fsaverage():
    with pytest.raises(BrainfastError, match="10,242"):
        coordinates(VertexSpace("fsaverage", [10242], []), source="fsaverage5")


def test_unknown_surface():
    with pytest.raises(BrainfastError, match="inflated or sphere"):
        coordinates(VertexSpace("fsaverage5", [0], []), "pial")


@pytest.mark.parametrize("side", ["lh", "rh"])
def test_meshes_inside_the_wheel(side):
    white = mesh("fsaverage5", "white", side)
    assert white.coordinates.shape == (10242, 3)
    assert white.faces.shape == (20480, 3)
    assert np.sign(white.coordinates[:, 0].mean()) == (-1 if side == "lh" else 1)
    assert len(mesh("fsaverage5", "flat", side).faces) < 20480
    assert mesh_data("fsaverage5", "sulc", side).shape == (10242,)
