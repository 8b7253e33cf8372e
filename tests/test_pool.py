"""Pools: the choice that the full response would make, sources, kills, and what is stale."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import brainfast
from brainfast.errors import BrainfastError
from brainfast.files import save_tensors
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.pool_file import DATA_FILE, INDEX_FILE, ITEMS_FILE, decode, encode
from brainfast.target_pattern import TargetPattern

KINDS = ("factortopy", "blobgpt")
kinds = pytest.mark.parametrize("kind", KINDS)
WANTED = ["FFA - PPA", "V1v"]


@pytest.fixture
def build(candidates, make_engine, tmp_path):
    """`build(kind, **options)`: a pool of the candidates, and its engine."""

    def run(kind="blobgpt", name="pool", **options):
        engine = make_engine(kind)
        return Pool.build(engine, candidates, path=tmp_path / name, batch_size=4, **options), engine

    return run


def paths_of(pool, candidates):
    return [candidates / name for name in pool.items.names]


def true_scores(engine, paths, objective):
    return engine.response(paths) @ Objective.of(objective).weights(engine.space).T


@kinds
@pytest.mark.parametrize(("dtype", "bar"), [("fp32", 1e-5), ("bf16", 1e-2), ("int8", 2e-2)])
def test_scores_are_those_of_the_full_response(build, candidates, kind, dtype, bar):
    pool, engine = build(kind, dtype=dtype)
    expected = true_scores(engine, paths_of(pool, candidates), WANTED)
    assert np.abs(pool.score(WANTED) - expected).max() <= bar * np.abs(expected).max()
    best = pool.top(WANTED, 5)
    assert list(best) == WANTED
    for column, choices in enumerate(best.values()):
        scores = [choice.score for choice in choices]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(
            scores, pool.score(WANTED)[[c.row for c in choices], column], rtol=1e-5, atol=1e-5
        )
        if dtype == "fp32":
            order = np.argsort(-expected[:, column], kind="stable")[:5]
            assert [choice.row for choice in choices] == order.tolist()


def test_it_is_part_of_the_package(build):
    pool, engine = build()
    assert brainfast.Pool is Pool
    assert len(Pool.open(pool.path)) == len(pool) == 13
    assert "13 candidates" in repr(pool)
    template = Objective("FFA").fold(engine)
    without = Pool.open(pool.path)
    assert without.top(template, 3)["template 0"] == pool.top("FFA", 3)["FFA"]
    with pytest.raises(BrainfastError, match=r"pool opened with its engine.*Pool.open\(path, eng"):
        without.top("FFA", 3)


@kinds
def test_patterns(build, candidates, kind):
    pool, engine = build(kind, dtype="fp32")
    response = engine.response(paths_of(pool, candidates))
    found = pool.top(TargetPattern(response[4], "squared error"), 2)["squared error"]
    assert found[0].row == 4
    assert abs(found[0].score) < 1e-5
    scores = pool.score(TargetPattern(response[4]))[:, 0]
    expected = [np.corrcoef(row, response[4])[0, 1] for row in response]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_constraints_against_a_greedy_search(build):
    pool, _ = build(dtype="fp32")
    scores, features = pool.score("FFA")[:, 0], pool.rows.decoded(slice(None))
    distance = float(np.median(np.linalg.norm(features[:, None] - features, axis=2)))
    shown = [pool.items.names[int(scores.argmax())]]
    expected, counts = [], {}
    for row in np.argsort(-scores, kind="stable"):
        category = pool.items.categories[row]
        near = any(np.linalg.norm(features[row] - features[other]) < distance for other in expected)
        if pool.items.names[row] in shown or near or counts.get(category, 0) >= 2:
            continue
        expected.append(int(row))
        counts[category] = counts.get(category, 0) + 1
    options = {"exclude": shown, "per_category": 2, "min_distance": distance}
    found = pool.top("FFA", len(expected), **options)["FFA"]
    assert [choice.row for choice in found] == expected
    assert len(expected) >= 2
    with pytest.raises(BrainfastError, match=f"k: expected at most {len(expected)}, which the con"):
        pool.top("FFA", len(expected) + 1, **options)


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(build, candidates, make_engine):
    whole, _ = build(name="whole")
    path = whole.path.with_name("killed")
    child = os.fork()
    if child == 0:
        engine = make_engine("blobgpt")
        right = engine.tokens

        def kill(images, **options):
            if engine.batches == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return right(images, **options)

        engine.tokens = kill
        try:
            Pool.build(engine, candidates, path=path, batch_size=4)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(BrainfastError, match="features of 13 candidates, got 8 of them; build it"):
        Pool.open(path)
    engine = make_engine("blobgpt")
    Pool.build(engine, candidates, path=path, batch_size=4)
    assert engine.batches == 2  # what was missing
    assert (path / DATA_FILE).read_bytes() == (whole.path / DATA_FILE).read_bytes()
    assert Pool.open(path).verify() == []


def change(engine, **parts):
    engine.card.trunk = SimpleNamespace(**(vars(engine.card.trunk) | parts))


def other_head(engine):
    projection = engine.head.projection
    engine.head = replace(
        engine.head, projection=replace(projection, latent_bias=projection.latent_bias + 1)
    )


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda e: change(e, weights_hash="1" * 64), "trunk weights"),
        (lambda e: change(e, name="other"), "trunk"),
        (
            lambda e: change(
                e, preprocessing=e.card.trunk.preprocessing.model_copy(update={"size": (9, 8)})
            ),
            "preprocessing",
        ),
        (lambda e: setattr(e.runtime, "precision", "bf16"), "trunk precision"),
        (other_head, "folded head"),
    ],
)
def test_a_stale_pool_says_what_changed(build, spoil, what):
    pool, engine = build()
    spoil(engine)
    with pytest.raises(BrainfastError, match=f"expected the same {what}, got a pool of other"):
        Pool.open(pool.path, engine)


def test_building_with_other_images_or_dtype_is_refused(build, candidates):
    pool, engine = build()
    with pytest.raises(BrainfastError, match="other dtype"):
        Pool.build(engine, candidates, path=pool.path, dtype="int8")
    paths_of(pool, candidates)[0].write_bytes(paths_of(pool, candidates)[1].read_bytes())
    with pytest.raises(BrainfastError, match="other images"):
        Pool.build(engine, candidates, path=pool.path)
    assert pool.verify(candidates) == [f"{pool.items.names[0]}: other bytes"]


def test_other_vertices_of_the_head_read_the_same_pool(build):
    pool, engine = build(dtype="fp32")
    few = np.arange(5, 30)
    engine.head, engine.space = engine.head.take(few), engine.space.take(few)
    assert len(Pool.open(pool.path, engine).top("PPA", 3)["PPA"]) == 3


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("project", [None, ["FFA", "PPA"]])
def test_adding_and_removing(build, candidates, tmp_path, dtype, project):
    pool, _ = build(dtype=dtype, project=project)
    first = pool.items.names[0]
    before = pool.top("FFA", 13)["FFA"]
    pool.remove([first])
    assert len(pool) == 12
    assert first not in [choice.name for choice in pool.top("FFA", 12)["FFA"]]
    assert np.isnan(pool.score("FFA")[0]).all()
    more = tmp_path / "more"
    more.mkdir()
    (more / "new.png").write_bytes((candidates / first).read_bytes())
    grown = pool.add(more)
    assert len(grown) == grown.index.items == 13
    renamed = [(c.name if c.name != first else "new.png", c.score) for c in before]
    found = grown.top("FFA", 13)["FFA"]
    assert [choice.name for choice in found] == [name for name, _ in renamed]
    # Batches of another size may differ in the last bits.
    np.testing.assert_allclose([c.score for c in found], [s for _, s in renamed], rtol=1e-5)
    assert grown.verify() == []
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".replaced", ".adding")]
    with pytest.raises(
        BrainfastError, match=r"new candidates, got 'new.png', which is in the pool"
    ):
        grown.add(more)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_verify_finds_changed_bytes(build, dtype, number):
    pool, _ = build(dtype=dtype)
    data = bytearray((pool.path / DATA_FILE).read_bytes())
    changed = np.array([number], np.float32).tobytes()
    end = len(data) - (pool.rows.features.nbytes if dtype == "int8" else 0)
    size = 2 if dtype == "bf16" else 4
    data[end - size : end] = changed[-size:]
    (pool.path / DATA_FILE).write_bytes(data)
    problems = Pool.open(pool.path).verify()
    assert problems == [
        "pool.safetensors: bytes that were not written by the build",
        f"{pool.items.names[-1]}: features that are not finite",
    ]


@pytest.mark.parametrize("name", [DATA_FILE, INDEX_FILE, ITEMS_FILE])
def test_a_damaged_file_is_one_line(build, name):
    pool, _ = build()
    path = pool.path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BrainfastError, match=name):
        Pool.open(pool.path)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("FFA", 0), {}, "k: expected a whole number, 1 or more, got 0"),
        (("FFA", 2.5), {}, "k: expected a whole number, 1 or more, got 2.5"),
        (("FFA", "2"), {}, "k: expected a whole number, 1 or more, got '2'"),
        (("FFA", 2), {"per_category": 0}, "per_category: expected a whole number, 1 or more"),
        (("FFA", 2), {"min_distance": float("nan")}, "min_distance: expected a finite number"),
        (("FFA", 2), {"min_distance": "far"}, "min_distance: expected a finite number.*'far'"),
        (("FFA", 14), {}, "k: expected 1 to 13.*got 14; exclude fewer"),
        (("FFA", 1), {"exclude": ["dog"]}, "candidate: expected a name in the pool.*got 'dog'"),
        (("OFA", 1), {}, "a region that subj01 has"),
        ((np.ones(4), 1), {}, "30 weights"),
    ],
)
def test_bad_choices(build, arguments, options, words):
    with pytest.raises(BrainfastError, match=words):
        build()[0].top(*arguments, **options)


def test_nothing_is_left_to_choose(build):
    pool, _ = build()
    pool.remove(pool.names)
    with pytest.raises(BrainfastError, match=r"k: expected 1 to 0.*add candidates"):
        pool.top("FFA", 1)


def test_stored_rows_keep_their_bars():
    rows = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    rows[2] = 0
    for dtype, bar in (("fp32", 0), ("bf16", 2**-8), ("int8", 1 / 250)):
        stored = encode(rows, dtype)
        found = decode(stored["features"], stored.get("scale"))
        assert np.abs(found - rows).max() <= bar * np.abs(rows).max()


def test_the_file_is_plain_safetensors(build, tmp_path):
    pool, _ = build(dtype="int8")
    from safetensors.numpy import load_file

    arrays = load_file(pool.path / DATA_FILE)
    np.testing.assert_array_equal(arrays["features"], pool.rows.features)
    np.testing.assert_array_equal(arrays["scale"], pool.rows.scale)
    save_tensors(tmp_path / "again", arrays)


def test_with_a_trunk_and_a_trained_head(fit_tiny, candidates, tmp_path):
    engine = fit_tiny(tmp_path / "work").compile(device="cpu").of("b")
    pool = Pool.build(engine, candidates, path=tmp_path / "pool", dtype="fp32", batch_size=13)
    response = engine.predict(paths_of(pool, candidates))
    expected = response.roi("FFA").mean(axis=1) - response.roi("V1v").mean(axis=1)
    np.testing.assert_allclose(pool.score("FFA - V1v")[:, 0], expected, atol=1e-4)
    assert Pool.open(pool.path, engine).top("FFA - V1v", 1)["FFA - V1v"][0].row == expected.argmax()
