import numpy as np
import pytest
from PIL import Image

from brainfast.data import Algonauts, Arrays, Group
from brainfast.data.splits import NAMES
from brainfast.errors import BrainfastError
from brainfast.images import as_images
from brainfast.vertex_space import VertexSpace

POOL = 60  # distinct images
FRACTIONS = (0.6, 0.2, 0.2)
SPACES = {
    "one": VertexSpace("fsaverage5", [1, 4, 9], [0, 7], {"V1": np.arange(5) < 2}),
    "two": VertexSpace("fsaverage5", [4, 12], [0, 7, 8], {"V1": np.arange(5) == 1}),
    "three": VertexSpace("fsaverage5", [1, 4, 9, 12], [], {"EBA": np.arange(4) > 2}),
}
SEEN = {"one": range(30), "two": range(20, 50), "three": range(25, 60)}


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def response(subject, number):
    random = np.random.default_rng([number, *subject.encode()])
    return random.standard_normal(SPACES[subject].V).astype(np.float32)


def subject(name, seen=None, **options):
    seen = SEEN[name] if seen is None else seen
    given = {
        "images": np.stack([picture(number) for number in seen]),
        "responses": np.stack([response(name, number) for number in seen]),
        "space": SPACES[name],
        "subject": name,
        "image_ids": [f"nsd-{number:05d}" for number in seen],
    }
    return Arrays(**given | options)


def group(names=tuple(SPACES), **options):
    return Group([subject(name) for name in names], **{"fractions": FRACTIONS, **options})


def sides(found):
    """(subject, image id) -> side."""
    return {
        (found.subjects[s], str(image)): name
        for name in NAMES
        for s, image in zip(
            getattr(found, name).subject_index, getattr(found, name).image_ids, strict=True
        )
    }


def test_union():
    found = group()
    assert found.subjects == ("one", "two", "three")
    assert found.space.lh.tolist() == [1, 4, 9, 12]
    assert found.space.rh.tolist() == [0, 7, 8]
    assert found.positions["two"].tolist() == [1, 3, 4, 5, 6]
    assert found.spaces["three"] == SPACES["three"]
    assert found.surface == "inflated"
    assert found.visual_angle_deg is None


@pytest.mark.parametrize("seed", range(4))
def test_no_image_on_two_sides(seed):
    found = group(seed=seed)
    of_image = {}
    for (_, image), side in sides(found).items():
        of_image.setdefault(image, set()).add(side)
    assert len(of_image) == POOL
    assert all(len(where) == 1 for where in of_image.values())
    assert sum(len(getattr(found, name)) for name in NAMES) == sum(map(len, SEEN.values()))


def test_sides_are_those_of_a_subject_alone():
    alone = subject("two", fractions=FRACTIONS, seed=3)
    found = group(seed=3)
    for name in NAMES:
        expected = getattr(alone, name)
        assert getattr(found, name).of("two").image_ids.tolist() == expected.image_ids.tolist()


def test_per_subject_reproduces_the_report():
    found = group(split="per_subject")
    where = {}
    for (_, image), side in sides(found).items():
        where.setdefault(image, set()).add(side)
    assert any(len(side) > 1 for side in where.values())
    assert len(sides(found)) == sum(map(len, SEEN.values()))
    assert found.split_hash != group().split_hash


def test_groups_join_images_across_subjects():
    """a and b share a group for one subject, b and c for another: all on one side for everybody."""
    first = subject("one", groups=["x" if n in (3, 29) else f"g{n}" for n in SEEN["one"]])
    second = subject("two", groups=["y" if n in (29, 49) else f"g{n}" for n in SEEN["two"]])
    for seed in range(12):
        where = sides(Group([first, second], fractions=FRACTIONS, seed=seed))
        chain = [("one", 3), ("one", 29), ("two", 29), ("two", 49)]
        assert len({where[name, f"nsd-{number:05d}"] for name, number in chain}) == 1


def write_table(path, seen, side_of):
    rows = [f"nsd-{number:05d},g{number},{side_of(number)}" for number in seen]
    path.write_text("\n".join(["image,group,split", *rows]))
    return path


def test_tables_fix_sides(tmp_path):
    def side_of(number):
        return NAMES[number % 3]

    table = write_table(tmp_path / "one.csv", SEEN["one"], side_of)
    for split in ("by_image", "per_subject"):
        found = Group([subject("one", groups=table), subject("two")], split=split)
        where = sides(found)
        assert all(where["one", f"nsd-{n:05d}"] == side_of(n) for n in SEEN["one"])
    other = write_table(tmp_path / "two.csv", SEEN["two"], lambda n: NAMES[(n + 1) % 3])
    tables = [subject("one", groups=table), subject("two", groups=other)]
    with pytest.raises(BrainfastError, match=r"one side for all subjects, got g20 in"):
        Group(tables)
    assert len(Group(tables, split="per_subject").train) > 0


@pytest.mark.parametrize("missing", ["mask", "zero"])
def test_responses_in_the_union(missing):
    found = group(missing=missing)
    split = found.train
    indices = np.random.default_rng(0).permutation(len(split))[:20]
    values, mask = split.responses(indices)
    assert values.dtype == np.float32
    assert mask.dtype == bool
    assert values.shape == mask.shape == (20, found.space.V)
    for row, index in enumerate(indices):
        name = split.subjects[split.subject_index[index]]
        number = int(split.image_ids[index][4:])
        expected = np.zeros(found.space.V, np.float32)
        expected[found.positions[name]] = response(name, number)
        own = np.zeros(found.space.V, bool)
        own[found.positions[name]] = True
        assert (values[row] == expected).all()
        assert (mask[row] == (own | (missing == "zero"))).all()
        assert (split.image(index) == picture(number)).all()
        assert (split.images[index] == picture(number)).all()
        assert split.rows[index] == split.of(name).image_ids.tolist().index(split.image_ids[index])
    assert split.responses(slice(0, 0))[0].shape == (0, found.space.V)
    with pytest.raises(IndexError):
        split.responses([len(split)])


@pytest.mark.parametrize("missing", ["mask", "zero"])
def test_nan_is_missing(missing):
    holes = np.stack([response("one", number) for number in SEEN["one"]])
    holes[:, 2] = np.nan
    holes[4, 0] = np.nan
    with pytest.raises(BrainfastError, match="NaN"):
        subject("one", responses=holes)
    found = Group(
        [subject("one", responses=holes, allow_nan=True), subject("two")],
        missing=missing,
        fractions=(1, 0, 0),
    )
    values, mask = found.train.responses(np.arange(len(found.train)))
    column = found.positions["one"][2]
    assert np.isfinite(values).all()
    assert (values[:30, column] == 0).all()
    assert mask[:30, column].all() == (missing == "zero")
    assert mask[4, found.positions["one"][0]] == (missing == "zero")
    assert mask[5, found.positions["one"][0]]
    holes[0, 0] = np.inf
    with pytest.raises(BrainfastError, match="infinity in 1 of 5"):
        subject("one", responses=holes, allow_nan=True)


def test_one_subject_of_the_group():
    ceiling = np.linspace(0, 1, 5)
    found = Group([subject("one", ceiling=ceiling), subject("three")])
    part = found.heldout.of("one")
    assert part.name == "heldout"
    assert part.space == SPACES["one"]
    assert (part.ceiling == ceiling.astype(np.float32)).all()
    assert found.heldout.of("three").ceiling is None
    assert part.responses.shape == (len(part), 5)
    with pytest.raises(BrainfastError, match="one of one, three, got 'four'"):
        found.train.of("four")


def test_unique_images():
    split = group(fractions=(1, 0, 0)).train
    images, index = split.unique_images()
    assert len(split) == 95
    assert len(images) == len(split.unique_rows) == POOL
    assert (np.diff(split.unique_rows) > 0).all()
    assert len(set(split.image_ids[split.unique_rows])) == POOL
    for pair in range(len(split)):
        assert (images[int(index[pair])] == split.image(pair)).all()


def shown_as(form, name, folder):
    """A subject whose images are arrays or PNG files as small as told; "ids" are names for them."""
    if "files" not in form:
        return subject(name) if "ids" in form else subject(name, image_ids=None)
    paths = []
    (folder / name).mkdir()
    for place, number in enumerate(SEEN[name]):
        # Positions are the names: alike for different images.
        paths.append(folder / name / f"{place}.png")
        level = 1 if "large" in form else 9
        Image.fromarray(picture(number)).save(paths[-1], compress_level=level)
    return subject(name, images=paths, **({} if "ids" in form else {"image_ids": None}))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "forms",
    [
        ("files", "files"),
        ("large files", "files"),
        ("files", "arrays"),
        ("arrays", "arrays"),
        ("arrays with ids", "arrays"),
        ("arrays", "files with ids"),
        ("files with ids", "files"),
    ],
)
def test_a_picture_without_an_id_is_known_by_its_content(tmp_path, forms, seed):
    """However two subjects give it, it has one id and lies on one side."""
    data = [
        shown_as(form, name, tmp_path) for name, form in zip(("one", "two"), forms, strict=True)
    ]
    found = Group(data, fractions=FRACTIONS, seed=seed)
    seen = {}
    for side in NAMES:
        split = getattr(found, side)
        for pair, image_id in enumerate(split.image_ids):
            content = as_images(split.image(pair))[0].tobytes()
            seen.setdefault(content, []).append((side, str(image_id)))
    assert len(seen) == 50
    assert sum(map(len, seen.values())) == 60
    assert all(len(set(where)) == 1 for where in seen.values())


def test_ids_stay_where_another_subject_has_none():
    """Texts are found by them, and the sides of those who have them are as they were."""
    alone = subject("one", fractions=FRACTIONS, seed=3)
    unnamed = subject("two", image_ids=None)
    found = Group([alone, unnamed], fractions=FRACTIONS, seed=3)
    for name in NAMES:
        expected = getattr(alone, name).image_ids.tolist()
        assert getattr(found, name).of("one").image_ids.tolist() == expected
    where = sides(found)
    shared = [f"nsd-{number:05d}" for number in SEEN["two"] if number in SEEN["one"]]
    assert len(shared) == 10
    assert all(where["two", image] == where["one", image] for image in shared)
    assert sides(Group([unnamed, alone], fractions=FRACTIONS, seed=3)) == where
    for data in (unnamed, found.data["two"]):  # to be grouped with others again
        assert not set(data.image_keys) & set(shared)


def test_an_algonauts_picture_is_known_without_its_id(write_folder):
    folder = write_folder("subj01", n=12)
    nsd = Algonauts(folder.path)
    pictures = [as_images(image)[0] for image in nsd.whole.images]
    own = Arrays(pictures, np.asarray(nsd.whole.responses), space=nsd.space, visual_angle_deg=8.4)
    found = Group({"subj01": nsd, "own": own}, fractions=FRACTIONS)
    for name in NAMES:
        split = getattr(found, name)
        ids = {s: split.image_ids[split.subject_index == s].tolist() for s in (0, 1)}
        assert ids[0] == ids[1]
        assert all(image.startswith("nsd-") for image in ids[0])


def test_subjects_that_name_none_are_named_by_the_group():
    unnamed, named = subject("one", subject=None), subject("two")
    found = Group({"a": unnamed, "b": unnamed, "c": named}, fractions=FRACTIONS)
    owners = {"a": "a", "b": "b", "c": "two"}
    for name, owner in owners.items():
        assert found.spaces[name].subject == found.data[name].subject == owner
        assert found.data[name].whole.space.subject == owner
        for side in NAMES:
            assert getattr(found, side).of(name).space.subject == owner
    for split in (unnamed, unnamed.whole, *(getattr(unnamed, side) for side in NAMES)):
        assert split.space.subject is None
    assert unnamed.subject is None


def test_hashes_are_stable():
    first, again = group(), group()
    assert first.split_hash == again.split_hash
    assert first.train.hash == again.train.hash
    assert len({first.train.hash, first.val.hash, first.heldout.hash}) == 3
    turned = group(("three", "one", "two"))
    assert turned.split_hash == first.split_hash  # the order of subjects moves nothing
    assert turned.train.hash != first.train.hash  # but the numbers of the pairs
    assert group(seed=1).split_hash != first.split_hash
    assert group(("one", "two")).split_hash != first.split_hash
    assert first.split_hash == ("0a79deb3466faaf93559ca3e1ec3d8744b653b30c52f046b3a5607f19c733e19")


def test_algonauts_folders(write_folder):
    """Folders share NSD images; responses are read row by row and never whole."""
    folders = [
        write_folder("subj01", n=12, nsd=7),
        write_folder("subj02", n=15, nsd=14, lh=6, rh=3),
    ]
    for number in range(6):  # the same pixels for the images that both saw
        source = folders[0].file(f"train-*_nsd-{14 * number:05d}.png")
        target = folders[1].file(f"train-*_nsd-{14 * number:05d}.png")
        target.write_bytes(source.read_bytes())
    found = Group([Algonauts(folder.path) for folder in folders], fractions=FRACTIONS)
    assert found.subjects == ("subj01", "subj02")
    assert found.visual_angle_deg == 8.4
    assert found.space.name == "fsaverage"
    where = {}
    for (_, image), side in sides(found).items():
        where.setdefault(image, set()).add(side)
    assert "nsd-00014" in where
    assert len(where) == 12 + 15 - 6
    assert all(len(side) == 1 for side in where.values())
    split = found.train
    values, _ = split.responses(range(len(split)))
    for pair in range(len(split)):
        s = split.subject_index[pair]
        row = int(split.image(pair).name[6:10]) - 1
        assert (values[pair, found.positions[split.subjects[s]]] == folders[s].fmri[row]).all()


def test_rows_stay_on_disk_until_asked_for():
    class Counted(np.memmap):
        pass

    class Spy:
        """Enough of an array for Responses, that counts the rows handed out."""

        def __init__(self, array):
            self.array, self.shape, self.read = array, array.shape, 0

        def __len__(self):
            return len(self.array)

        def __getitem__(self, rows):
            self.read += len(rows)
            return self.array[rows]

    found = group()
    responses = found.train.of("one").responses
    spy = Spy(responses._parts[0])
    responses._parts = (spy,)
    split = found.train
    split.unique_images()
    assert spy.read == 0
    split.responses([0, len(split) - 1])
    assert spy.read == 1


def test_coordinates():
    found = group()
    for name in SPACES:
        own = subject(name).coordinates
        assert (found.coordinates[found.positions[name]] == own).all()
    other = subject("two", coordinates=np.ones((5, 3), np.float32))
    with pytest.raises(BrainfastError, match="coordinates of two"):
        _ = Group([subject("one"), other]).coordinates


def test_resplit_leaves_the_data_as_they_were():
    data = subject("one")
    before = data.split_hash, data.train.image_ids.tolist()
    other = data.resplit({"train": np.array([3, 1]), "val": np.array([0])})
    assert other.train.image_ids.tolist() == ["nsd-00003", "nsd-00001"]
    assert (other.train.responses[0] == response("one", 3)).all()
    assert len(other.heldout) == 0
    assert (data.split_hash, data.train.image_ids.tolist()) == before
    for parts in ({"train": [30]}, {"train": [1, 1]}, {"train": [1], "val": [1]}, {"test": [1]}):
        with pytest.raises(BrainfastError, match="each on one side"):
            data.resplit(parts)


CUSTOM = VertexSpace("custom", [0, 1], [2, 3, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group([]), "at least one data set"),
        (lambda: Group([subject("one"), subject("one")]), r"name of its own .*got one, one"),
        (lambda: Group([subject("one", subject=None)]), "each with a name"),
        (lambda: Group({"a": np.ones(3)}), "subject a: expected a brainfast.data.Algonauts"),
        (lambda: group(missing="nan"), "mask or zero, got 'nan'"),
        (lambda: group(split="random"), "by_image or per_subject"),
        (lambda: group(fractions=(1, 1, 0)), "sum to 1"),
        (lambda: Group([subject("one"), subject("two", surface="sphere")]), "surface: expected"),
        (lambda: Group([subject("one"), subject("two", visual_angle_deg=3.0)]), "one 3.0|two 3.0"),
        (
            lambda: Group(
                [
                    subject("one"),
                    subject("two", space=CUSTOM, coordinates=np.eye(5, 3)),
                ]
            ),
            "one on fsaverage5, two on custom",
        ),
        (
            lambda: Group(
                [subject("one"), subject("two", image_ids=[f"nsd-{n:05d}" for n in range(30)])]
            ),
            r"image nsd-000\d\d: expected one picture for one and two",
        ),
    ],
)
def test_bad_groups(make, message):
    with pytest.raises(BrainfastError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_subject_without_training_images(tmp_path):
    table = write_table(tmp_path / "g.csv", range(30), lambda n: "train" if n < 20 else "val")
    (tmp_path / "h.csv").write_text(
        table.read_text().replace("nsd-00029,g29,val", "nsd-00029,g29,heldout")
    )
    first = subject("one", groups=tmp_path / "h.csv")
    second = subject("two", seen=range(20, 30))
    with pytest.raises(BrainfastError, match="the train split of two: expected at least one"):
        Group([first, second])
