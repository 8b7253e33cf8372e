import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast.data.splits import NAMES, Images, read_groups, split_by_image, split_hash
from brainfast.errors import BrainfastError


def ids(n):
    return [f"image-{number}" for number in range(n)]


def side_of(parts, image_ids):
    return {image_ids[row]: name for name, rows in parts.items() for row in rows}


@given(
    st.lists(st.integers(0, 9), min_size=10, max_size=60).filter(lambda g: len(set(g)) >= 3),
    st.integers(0, 5),
)
def test_no_group_on_two_sides_and_no_split_empty(groups, seed):
    parts = split_by_image(ids(len(groups)), (0.7, 0.2, 0.1), seed, [str(g) for g in groups])
    assert tuple(parts) == NAMES
    every = np.concatenate(list(parts.values()))
    assert sorted(every) == list(range(len(groups)))
    sides = [{groups[row] for row in rows} for rows in parts.values()]
    assert all(sides)
    assert sum(len(side) for side in sides) == len(set(groups))


def test_shares_and_seeds():
    parts = split_by_image(ids(5000), (0.8, 0.15, 0.05), seed=1)
    shares = [len(parts[name]) / 5000 for name in NAMES]
    assert np.allclose(shares, (0.8, 0.15, 0.05), atol=0.02)
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in parts.values())
    other = split_by_image(ids(5000), (0.8, 0.15, 0.05), seed=2)
    assert not np.array_equal(parts["heldout"], other["heldout"])


def test_side_depends_on_the_image_alone():
    """Two subjects who saw different images agree about those that both saw."""
    one, two = ids(600)[:400], ids(600)[::-1][:450]
    first = side_of(split_by_image(one), one)
    second = side_of(split_by_image(two), two)
    shared = set(one) & set(two)
    assert len(shared) == 250
    assert all(first[image] == second[image] for image in shared)


def test_sides_never_change():
    """Published scores name a split's hash: the sides are fixed for ever."""
    image_ids = [f"nsd-{number:05d}" for number in range(20)]
    parts = split_by_image(image_ids, (0.6, 0.2, 0.2), seed=0)
    assert parts["val"].tolist() == [3, 4, 9, 10]
    assert parts["heldout"].tolist() == [2, 19]
    assert split_hash({name: [image_ids[r] for r in rows] for name, rows in parts.items()}) == (
        "259450e797c051311be7946af7e99e49d54e64f1fbfe5c905c9ac63d469c9022"
    )


def test_hash_is_of_the_sides():
    sides = {"train": ["a", "b"], "val": ["c"]}
    assert split_hash(sides) == split_hash({"val": ["c"], "train": ["b", "a"]})
    others = [
        {"train": ["a"], "val": ["b", "c"]},
        {"train": ["a", "bc"], "val": []},
        {"train": ["a", "b", "c"], "val": []},
    ]
    assert len({split_hash(sides), *map(split_hash, others)}) == 4


def test_repeats_of_an_image_stay_together():
    image_ids = [f"image-{n % 40}" for n in range(120)]
    parts = split_by_image(image_ids)
    sides = [{image_ids[row] for row in rows} for rows in parts.values()]
    assert sum(map(len, sides)) == 40


def test_a_split_may_be_left_out():
    parts = split_by_image(ids(50), (0.9, 0.0, 0.1))
    assert parts["val"].size == 0
    assert parts["train"].size + parts["heldout"].size == 50


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1), (0.8, 0.3, 0.1), (1.2, -0.1, -0.1), (0, 0.5, 0.5), (np.nan, 0, 1)]
)
def test_bad_fractions(fractions):
    with pytest.raises(BrainfastError, match="fractions"):
        split_by_image(ids(9), fractions)


def test_too_few_groups():
    with pytest.raises(BrainfastError, match="at least 3"):
        split_by_image(ids(9), groups=list("ababababa"))
    with pytest.raises(BrainfastError, match="one for each of 9"):
        split_by_image(ids(9), groups=list("ab"))


def write_csv(path, rows, header=("image", "group", "split")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


IDS = np.array(["train-0001_nsd-00003", "train-0002_nsd-00004", "train-0003_nsd-00009"])


def test_groups_from_a_table(tmp_path):
    rows = [("else.png", "zoo"), *((f"folder/{i}.png", f"group,{n}") for n, i in enumerate(IDS))]
    found = read_groups(write_csv(tmp_path / "g.csv", rows, ("image", "group")), IDS)
    assert found.groups.tolist() == ["group,0", "group,1", "group,2"]
    assert found.fixed is None


def test_table_may_fix_the_split(tmp_path):
    sides = ("heldout", "train", "val")
    rows = [(i, f"g{n}", sides[n]) for n, i in enumerate(IDS)]
    found = read_groups(str(write_csv(tmp_path / "g.csv", rows)), IDS)
    parts = found.split(IDS, (0.8, 0.1, 0.1), seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [1],
        "val": [2],
        "heldout": [0],
    }


def test_leaking_table(tmp_path):
    rows = [(IDS[0], "a", "train"), (IDS[1], "a", "heldout"), (IDS[2], "b", "val")]
    with pytest.raises(BrainfastError, match=r"group a in heldout and train; .*leak"):
        read_groups(write_csv(tmp_path / "g.csv", rows), IDS)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("image", "group"), [(IDS[0], "a"), (IDS[1], "b")], r"none for train-0003_nsd-00009"),
        (("image", "group"), [], "and 2 more"),
        (("picture", "group"), [], "a header with image and group, got picture, group"),
        (("image", "group"), [(i, "a") for i in [*IDS, IDS[1] + ".png"]], "an image twice"),
        (("image", "group"), [(i,) for i in IDS], "a broken line 2"),
        (("image", "group"), [(i, "a", "b") for i in IDS], "a broken line 2"),
        (("image", "group", "split"), [(i, i, "test") for i in IDS], "got 'test'"),
        (("image", "group", "split"), [(i, i, "train") for i in IDS], "none for val"),
    ],
)
def test_bad_tables(tmp_path, header, rows, message):
    with pytest.raises(BrainfastError, match=message) as caught:
        read_groups(write_csv(tmp_path / "g.csv", rows, header), IDS)
    assert "g.csv" in str(caught.value)


def test_table_that_is_none(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.csv", "binary.csv"):
        with pytest.raises(BrainfastError, match=name):
            read_groups(tmp_path / name, IDS)


def test_groups_from_mapping_or_list():
    assert read_groups(dict.fromkeys(IDS, "x"), IDS).groups.tolist() == ["x"] * 3
    assert read_groups([1, 2, 3], IDS).groups.tolist() == ["1", "2", "3"]
    with pytest.raises(BrainfastError, match="none for train-0002_nsd-00004 and 1 more"):
        read_groups({IDS[0]: "x"}, IDS)
    with pytest.raises(BrainfastError, match="one for each of 3"):
        read_groups(["x"], IDS)


def test_images_are_looked_up_late():
    class Library:
        def __init__(self):
            self.asked = []

        def __len__(self):
            return 100

        def __getitem__(self, index):
            assert isinstance(index, int)
            self.asked.append(index)
            return index * 10

    library = Library()
    part = Images(library, np.array([7, 3, 50]))
    assert len(part) == 3
    assert library.asked == []
    assert part[1] == 30
    assert list(part[1:]) == [30, 500]
    assert list(part) == [70, 30, 500]
    assert part[-1] == 500
