import nibabel
import numpy as np
import pytest
from nilearn.surface import load_surf_data

from brainfast import maps
from brainfast.errors import BrainfastError
from brainfast.response import Response
from brainfast.vertex_space import VertexSpace

ROIS = {"V1v": np.array([1, 0, 0, 0, 1], bool), "PPA": np.array([0, 0, 1, 0, 0], bool)}


def make(name="fsaverage", lh=(2, 10241, 163841), rh=(0, 9), names=()):
    space = VertexSpace(name, np.array(lh), np.array(rh), ROIS, "subj01")
    values = np.arange(2 * 5, dtype=np.float32).reshape(2, 5)
    return Response(values, space, names=names)


def test_parts():
    response = make()
    assert len(response) == 2
    assert response.units == "z"
    assert response.lh.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert response.rh.tolist() == [[3, 4], [8, 9]]
    assert response.roi("V1").tolist() == [[0, 4], [5, 9]]
    assert response.roi("lh.v1").tolist() == [[0], [5]]
    with pytest.raises(BrainfastError, match="subj01 has"):
        response.roi("FFA")


@pytest.mark.parametrize(
    ("images", "rows"),
    [(1, [1]), (-1, [1]), (slice(0, 1), [0]), (np.array([1, 0]), [1, 0]), (slice(2, 2), [])],
)
def test_getitem(images, rows):
    part = make(names=("cat", "dog"))[images]
    assert part.values.tolist() == make().values[rows].tolist()
    assert list(part.names) == [("cat", "dog")[row] for row in rows]


@pytest.mark.parametrize(
    "values", [np.zeros((2, 4), "f4"), np.zeros(5, "f4"), np.zeros((2, 5), int), [["a"] * 5]]
)
def test_bad_values(values):
    with pytest.raises(BrainfastError, match=r"floats \[B,5\]"):
        Response(values, make().space)


def test_float64_becomes_float32():
    assert Response(np.zeros((1, 5)), make().space).values.dtype == np.float32


def test_names_must_match():
    with pytest.raises(BrainfastError, match="one for each image"):
        make(names=("cat",))


def test_to_whole_meshes():
    full = make().to("fsaverage")
    assert full["lh"].shape == full["rh"].shape == (2, 163842)
    assert full["lh"][:, [2, 10241, 163841]].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert full["rh"][:, [0, 9]].tolist() == [[3, 4], [8, 9]]
    assert np.isfinite(full["lh"]).sum() == 6
    small = make().to("fsaverage5")
    assert small["lh"].shape == (2, 10242)
    assert small["lh"][:, [2, 10241]].tolist() == [[0, 1], [5, 6]]
    assert np.isfinite(small["lh"]).sum() == np.isfinite(small["rh"]).sum() == 4
    up = make("fsaverage5", lh=(1, 2, 3)).to("fsaverage")
    assert up["lh"][0, [1, 2, 3]].tolist() == [0, 1, 2]
    assert np.isfinite(up["lh"]).sum() == 6


def test_to_refuses():
    with pytest.raises(BrainfastError, match="fsaverage or fsaverage5"):
        make().to("fsaverage6")
    with pytest.raises(BrainfastError, match="custom"):
        make("custom").to("fsaverage5")
    with pytest.raises(BrainfastError, match="numpy"):
        make("custom").save("x")


@pytest.mark.parametrize(("name", "size"), [("fsaverage5", 10242), ("fsaverage", 163842)])
def test_save_gifti(tmp_path, name, size):
    paths = make(name, lh=(2, 7, 10241), names=("cat", "dog")).save(tmp_path / "sub" / "cat.v1")
    assert [path.name for path in paths] == ["cat.v1_hemi-L.func.gii", "cat.v1_hemi-R.func.gii"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    left = load_surf_data(paths[0])
    assert left.shape == (size, 2)
    assert left[[2, 7, 10241]].T.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert np.isfinite(left).sum() == 6
    for path, structure in zip(paths, ("CortexLeft", "CortexRight"), strict=True):
        image = nibabel.load(path)
        assert image.meta["AnatomicalStructurePrimary"] == structure
        assert [array.meta["Name"] for array in image.darrays] == ["cat", "dog"]
        assert all(array.data.dtype == np.float32 for array in image.darrays)


def test_save_needs_an_image_and_a_place(tmp_path):
    with pytest.raises(BrainfastError, match="at least one image"):
        make()[2:].save(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(BrainfastError, match="written"):
        make("fsaverage5", lh=(1, 2, 3)).save(tmp_path / "file" / "x")


def test_plot_draws_one_image(monkeypatch):
    seen = {}

    def value_map(values, space, **options):
        seen.update(values=values, space=space, **options)
        return "figure"

    monkeypatch.setattr(maps, "value_map", value_map)
    response = make(names=("cat", "dog"))
    assert response.plot(1) == "figure"
    assert seen["values"].tolist() == [5, 6, 7, 8, 9]
    assert seen["space"] is response.space
    assert "dog" in seen["label"]
    assert "z" in seen["label"]
