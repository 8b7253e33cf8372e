import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast.errors import BrainfastError
from brainfast.files import load_tensors, save_tensors
from brainfast.vertex_space import ALIASES, ATLASES, UNIONS, VertexSpace


def mask(V, *columns):
    out = np.zeros(V, dtype=bool)
    out[list(columns)] = True
    return out


@pytest.fixture
def space():
    """4 left and 3 right vertices; FFA-2 only on the right, no FFA-1, an empty EBA."""
    rois = {
        "V1v": mask(7, 0, 4),
        "V1d": mask(7, 1),
        "hV4": mask(7, 2),
        "FFA-2": mask(7, 5, 6),
        "OWFA": mask(7, 3),
        "mfs-words": mask(7, 3, 5),
        "EBA": mask(7),
        "my-roi": mask(7, 6),
    }
    return VertexSpace("fsaverage", [3, 9, 11, 160000], [0, 5, 7], rois, "subj01")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("V1v", [0, 4]),
        ("v1V", [0, 4]),
        ("V1", [0, 1, 4]),
        ("lh.V1", [0, 1]),
        ("RH.v1", [4]),
        ("V4", [2]),
        ("hV4", [2]),
        ("FFA", [5, 6]),  # a union of the parts that are here
        ("rh.FFA-2", [5, 6]),
        ("OVWFA", [3]),
        ("Mfs-words", [3, 5]),
        ("lh.Mfs-words", [3]),
        ("my-roi", [6]),
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("lh", [0, 1, 2, 3]),
        ("rh.all", [4, 5, 6]),
    ],
)
def test_roi(space, name, columns):
    found = space.roi(name)
    assert found.dtype == np.int64
    assert found.tolist() == columns


@pytest.mark.parametrize("name", ["PPA", "EBA", "FFA-1", "FBA", "lh.FFA", "nothing", "", "xh.V1"])
def test_absent_roi_lists_what_is_here(space, name):
    with pytest.raises(BrainfastError, match=r"subj01 has .*V1, V1v, V1d.*my-roi") as caught:
        space.roi(name)
    assert "\n" not in str(caught.value)
    assert "EBA," not in str(caught.value)


def test_roi_names_order(space):
    names = ["V1", "V1v", "V1d", "hV4", "FFA", "FFA-2", "OWFA", "mfs-words", "my-roi"]
    assert space.roi_names() == names


def test_own_roi_goes_before_union():
    space = VertexSpace("custom", [0, 1, 2], [], {"V1": mask(3, 0), "V1v": mask(3, 1)})
    assert space.roi("V1").tolist() == [0]
    assert space.roi_names() == ["V1", "V1v"]


@pytest.mark.parametrize(("given", "asked"), [("V4", "hV4"), ("hV4", "V4"), ("OVWFA", "OWFA")])
def test_an_alias_is_the_other_spelling_of_one_region(given, asked):
    space = VertexSpace("custom", [0, 1, 2], [], {given: mask(3, 1)})
    assert space.roi(asked).tolist() == space.roi(given).tolist() == [1]


def test_tables_name_known_regions():
    known = {name for atlas in ATLASES.values() for name in atlas}
    assert len(known) == sum(len(atlas) for atlas in ATLASES.values())
    assert {part for parts in UNIONS.values() for part in parts} <= known
    assert set(ALIASES.values()) <= known


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        (None, range(7)),
        ("V1", [0, 1, 4]),
        (["FFA", "V1v", "rh.V1"], [0, 4, 5, 6]),
        ([6, 2], [2, 6]),
        (np.array([5], dtype=np.uint8), [5]),
        (mask(7, 1, 3), [1, 3]),
        ([], []),
    ],
)
def test_select(space, what, columns):
    found = space.select(what)
    assert found.dtype == np.int64
    assert found.tolist() == list(columns)


@pytest.mark.parametrize(
    "what", [[7], [-1], [0.5], mask(6, 1), ["V1", 3], np.zeros((2, 2), int), ["PPA"]]
)
def test_select_refuses(space, what):
    with pytest.raises(BrainfastError):
        space.select(what)


@pytest.mark.parametrize(
    "what", [mask(7, 1, 3).astype(int), mask(7).astype(np.uint8), np.ones(7, int), [6, 2, 2]]
)
def test_a_mask_of_numbers_is_not_taken_for_indices(space, what):
    with pytest.raises(BrainfastError, match=r"each once.*mask\.astype\(bool\)") as caught:
        space.select(what)
    assert "\n" not in str(caught.value)


@given(st.sets(st.integers(0, 6)))
def test_take_is_an_exact_subset(columns):
    rois = {"A": mask(7, 1, 5), "B": mask(7, 2)}
    whole = VertexSpace("fsaverage5", [1, 3, 4, 8], [2, 5, 6], rois, "me")
    columns = np.array(sorted(columns), dtype=np.int64)
    part = whole.take(columns)
    every = np.array([("lh", v) for v in whole.lh] + [("rh", v) for v in whole.rh])
    kept = np.array([("lh", v) for v in part.lh] + [("rh", v) for v in part.rh]).reshape(-1, 2)
    assert (kept == every[columns]).all()
    assert set(part.rois) == {n for n in "AB" if rois[n][columns].any()}
    for name in part.rois:
        assert set(columns[part.roi(name)]) == set(columns) & set(whole.roi(name))


def test_take_refuses_another_order(space):
    for wrong in ([3, 1], [1, 1]):
        with pytest.raises(BrainfastError, match="indices, each once"):
            space.take(np.array(wrong))


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "MNI"},
        {"lh": [1, 1]},
        {"lh": [2, 1]},
        {"lh": [-1, 1]},
        {"rh": [10242]},
        {"rh": [0.5]},
        {"rh": [[1]]},
        {"rois": {"A": np.zeros(3, bool)}},
        {"rois": {"A": np.zeros(4, int)}},
        {"rois": {"A": mask(4, 1), "a": mask(4, 1)}},
    ],
)
def test_bad_spaces(arguments):
    good = {"name": "fsaverage5", "lh": [0, 1], "rh": [3, 4]}
    assert VertexSpace(**good).V == 4
    with pytest.raises(BrainfastError):
        VertexSpace(**good | arguments)


def test_hash_is_of_the_vertices():
    one = VertexSpace("fsaverage5", [0, 1], [3])
    assert one.hash() == VertexSpace("fsaverage5", [0, 1], [3], {"A": mask(3, 0)}, "x").hash()
    others = [
        VertexSpace("fsaverage", [0, 1], [3]),
        VertexSpace("fsaverage5", [0], [1, 3]),
        VertexSpace("fsaverage5", [0, 1], [4]),
    ]
    assert len({one.hash(), *(other.hash() for other in others)}) == 4
    assert one != others[0]
    # Saved models carry it, so it may never change.
    assert one.hash().startswith("eb87bf3550b10b4c")


def test_arrays_are_read_only_and_own(space):
    given_mask = mask(7, 2)
    made = VertexSpace("custom", np.arange(7), [], {"A": given_mask})
    given_mask[:] = True
    assert made.roi("A").tolist() == [2]
    with pytest.raises(ValueError, match="read-only"):
        space.lh[0] = 5
    with pytest.raises(TypeError):
        space.rois["new"] = mask(7, 1)


def test_round_trip(space, tmp_path):
    arrays, about = space.to_arrays()
    save_tensors(tmp_path / "space.safetensors", arrays)
    back = VertexSpace.from_arrays(
        load_tensors(tmp_path / "space.safetensors"), json.loads(json.dumps(about))
    )
    assert back == space
    assert back.subject == "subj01"
    assert list(back.rois) == list(space.rois)
    assert all((back.rois[name] == space.rois[name]).all() for name in space.rois)


@pytest.mark.parametrize("empty", [{"lh": [], "rh": []}, {"lh": [1], "rh": []}])
def test_round_trip_without_regions(empty):
    space = VertexSpace("fsaverage5", **empty)
    assert VertexSpace.from_arrays(*space.to_arrays()) == space


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays, about: arrays.pop("lh"),
        lambda arrays, about: about.pop("rois"),
        lambda arrays, about: about.update(rois=["one"]),
        lambda arrays, about: about.update(name="fsaverage5"),
        lambda arrays, about: about.update(name=["fsaverage"]),
        lambda arrays, about: about.update(subject=3),
        lambda arrays, about: about.update(hash="0"),
        lambda arrays, about: arrays.update(rh=arrays["rh"] + 1),
        lambda arrays, about: arrays.update(rois=arrays["rois"][:, :-1]),
    ],
)
def test_from_arrays_refuses(space, spoil):
    arrays, about = space.to_arrays()
    spoil(arrays, about)
    with pytest.raises(BrainfastError):
        VertexSpace.from_arrays(arrays, about)


# Several subjects


def subjects():
    one = VertexSpace("fsaverage", [3, 9, 160000], [0, 5], {"V1v": mask(5, 0, 3)}, "one")
    two = VertexSpace("fsaverage", [4, 9], [5, 7], {"v1V": mask(4, 1), "EBA": mask(4, 3)}, "two")
    return {"one": one, "two": two}


def test_union():
    spaces = subjects()
    whole = VertexSpace.union(spaces)
    assert whole.name == "fsaverage"
    assert whole.subject is None
    assert whole.lh.tolist() == [3, 4, 9, 160000]
    assert whole.rh.tolist() == [0, 5, 7]
    assert whole.roi_names() == ["V1", "V1v", "EBA"]
    assert whole.roi("V1v").tolist() == [0, 2, 4]  # of anybody
    assert whole.roi("EBA").tolist() == [6]
    assert spaces["one"].roi("V1v").tolist() == [0, 3]  # a subject keeps its own
    assert VertexSpace.union(dict(reversed(spaces.items()))) == whole
    assert VertexSpace.union({"one": spaces["one"]}) == spaces["one"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("name", "parts"),
    [*UNIONS.items(), *((alias, (name,)) for alias, name in ALIASES.items()), ("hV4", ("V4",))],
)
def test_a_region_of_the_union_is_of_those_too_who_have_its_parts(name, parts, turned):
    """Columns of the union: lh 1, 4, 9, rh 0, 7; one spells the region, two has its parts."""
    rows = {part: mask(3, 1 + place) for place, part in enumerate(parts)}
    spaces = {
        "one": VertexSpace("fsaverage5", [1, 4], [0], {name: mask(3, 0)}),
        "two": VertexSpace("fsaverage5", [4, 9], [7], rows),
    }
    whole = VertexSpace.union(dict(reversed(spaces.items())) if turned else spaces)
    assert whole.roi(name).tolist() == [0, 2, 4][: 1 + len(parts)]
    if name in UNIONS:
        assert [whole.roi(part).tolist() for part in parts] == [[2], [4]]


@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=4))
def test_positions_bring_vertices_back(sides):
    spaces = {
        str(n): VertexSpace("fsaverage5", sorted(some), sorted(30 - v for v in some))
        for n, some in enumerate(sides)
    }
    whole = VertexSpace.union(spaces)
    for space in spaces.values():
        columns = whole.positions(space)
        assert columns.dtype == np.int64
        assert whole.take(columns) == space


def test_positions_of_what_is_not_there():
    one, two = subjects().values()
    with pytest.raises(BrainfastError, match=r"vertices of two: .* got 2 that are not among them"):
        one.positions(two)
    with pytest.raises(BrainfastError, match="got 1 vertices on custom"):
        one.positions(VertexSpace("custom", [3], []))
    assert one.positions(VertexSpace("fsaverage", [], [])).size == 0


def test_union_of_what_does_not_go_together():
    one = subjects()["one"]
    with pytest.raises(BrainfastError, match="at least one subject"):
        VertexSpace.union({})
    with pytest.raises(BrainfastError, match="one on fsaverage, two on fsaverage5"):
        VertexSpace.union({"one": one, "two": VertexSpace("fsaverage5", [3], [])})
    custom = VertexSpace("custom", [0, 1], [])
    assert VertexSpace.union({"one": custom, "two": custom}) == custom
    with pytest.raises(BrainfastError, match="no known mesh"):
        VertexSpace.union({"one": custom, "two": VertexSpace("custom", [0], [])})
