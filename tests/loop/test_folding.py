"""Objectives through an engine of either head, and a Pool as a session sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainfast import Pool, Session
from brainfast.bench.made_up import made_up_head
from brainfast.errors import BrainfastError
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.loop import ArrayCandidates, replay
from brainfast.loop.folding import PoolCandidates
from brainfast.loop.subject import SimulatedSubject, images_of, model_world
from brainfast.preprocessing import Preprocessing
from brainfast.target_pattern import TargetPattern
from brainfast.tokens import Tokens
from brainfast.vertex_space import VertexSpace

L, C, V, IMAGES = 2, 3, 12, 5
MASKS = {"FFA-1": np.arange(V) < 4, "PPA": np.arange(V) > 8}


def factortopy() -> Any:
    return made_up_head(V, L, 4, channels=C, grid=(4, 4))


def blobgpt() -> Any:
    random = np.random.default_rng(0)
    K = 6
    projection = BlobProjection(
        tuple(random.standard_normal((L, K, C), np.float32)),
        tuple(random.standard_normal((L, K, 16), np.float32)),
        random.standard_normal(K, np.float32),
        tuple(range(L)),
        ((4, 4),) * L,
        False,
    )
    weight = random.standard_normal((V, K), np.float32)
    return FoldedBlobGPT(projection, weight, random.standard_normal(V, np.float32))


class FakeEngine:
    """A head, and for every image path tokens that depend on its name alone."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.space = VertexSpace("custom", np.arange(V), np.arange(0), MASKS)
        preprocessing = Preprocessing(
            size=(32, 32),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            interpolation="bilinear",
            antialias=True,
        )
        trunk = SimpleNamespace(preprocessing=preprocessing)
        self.card = SimpleNamespace(model_hash="model", trunk=trunk)

    def tokens(self, images: list[Any], *, batch_size: int) -> Tokens:
        rows = [np.random.default_rng(int(str(image))) for image in images]
        local = np.stack([row.standard_normal((L, C, 4, 4), np.float32) for row in rows], axis=1)
        global_ = np.stack([row.standard_normal((L, C), np.float32) for row in rows], axis=1)
        return Tokens(tuple(local), tuple(global_), tuple(range(L)))

    def template(self, weights: np.ndarray) -> Any:
        return self.head.template(weights)


@pytest.mark.parametrize("head", [factortopy, blobgpt])
def test_a_model_of_either_head_becomes_a_world(head: Any) -> None:
    engine: Any = FakeEngine(head())
    names = [str(number) for number in range(IMAGES)]
    made = images_of(engine, names, batch_size=2)  # type: ignore[arg-type]
    ceiling = np.linspace(0.1, 0.5, V)
    world = model_world(engine, made, "FFA - PPA", ceiling)
    goal = world.objective
    scores = made.values @ goal.template + goal.offset
    response = engine.head.run(engine.tokens(names, batch_size=5))
    own = np.r_[:4, 9:V]  # the objective's vertices, and no others
    predicted = world.predict(np.arange(IMAGES))
    np.testing.assert_allclose(predicted, response[:, own], atol=1e-5)
    np.testing.assert_array_equal(world.ceiling, ceiling[own])
    ffa, ppa = predicted[:, :4].mean(axis=1), predicted[:, 4:].mean(axis=1)
    np.testing.assert_allclose(scores, ffa - ppa, atol=1e-4)
    assert world.pool.ids == tuple(names)
    assert world.groups.tolist() == [world.groups[0]] * 4 + [world.groups[4]] * 3
    assert world.groups[0] != world.groups[4]
    with Session(world.pool, "FFA - PPA", engine=engine, deadline_ms=60_000) as session:
        choice = session.next()
    assert choice.image == names[int(np.argmax(scores))]
    assert choice.score == pytest.approx(scores.max(), abs=1e-4)


@pytest.mark.parametrize(
    "objective", [["FFA", "PPA"], TargetPattern(np.arange(V)), [TargetPattern(np.arange(V))]]
)
def test_a_world_has_one_objective_of_weights(objective: Any) -> None:
    engine: Any = FakeEngine(blobgpt())
    made = images_of(engine, ["1", "2"])  # type: ignore[list-item]
    with pytest.raises(BrainfastError, match="one objective of weights"):
        model_world(engine, made, objective)


def test_weights_beside_a_pattern_have_names_of_their_own() -> None:
    engine: Any = FakeEngine(blobgpt())
    names = [str(number) for number in range(IMAGES)]
    made = images_of(engine, names)  # type: ignore[arg-type]
    first, last = np.eye(V, dtype=np.float32)[[0, V - 1]]
    goals = [first, TargetPattern(np.arange(V)), "FFA", last]
    response = engine.head.run(engine.tokens(names, batch_size=IMAGES))
    with Session(made, goals, engine=engine, deadline_ms=60_000) as session:
        assert session.objectives == ("weights 0", "correlation", "FFA", "weights 2")
        for name, vertex in (("weights 0", 0), ("weights 2", V - 1)):
            np.testing.assert_allclose(session.expected(name)[0], response[:, vertex], atol=1e-4)


@pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
def test_a_pool_becomes_a_world(
    make_engine: Any, candidates: Path, tmp_path: Path, kind: str
) -> None:
    engine = make_engine(kind)
    made = Pool.build(engine, candidates, path=tmp_path / "p", dtype="fp32")
    made.remove([made.names[2]])
    world = model_world(engine, PoolCandidates(made), "FFA")
    subject = SimulatedSubject(world, model_error=0.0)
    scores = made.score("FFA")[:, 0]
    np.testing.assert_allclose(subject.objective, scores[np.isfinite(scores)], rtol=1e-4, atol=1e-5)
    vertices = engine.space.roi("FFA")
    assert world.objective.V == len(vertices) == world.predict(np.array([0])).shape[1]
    row = world.predict(np.array([3]))[0]
    assert row.mean() == pytest.approx(subject.objective[3], rel=1e-4)


def test_a_pool_of_scores_becomes_none(make_engine: Any, candidates: Path, tmp_path: Path) -> None:
    engine = make_engine("blobgpt")
    made = Pool.build(engine, candidates, path=tmp_path / "p", project=["FFA"])
    with pytest.raises(BrainfastError, match="one of all features"):
        model_world(engine, PoolCandidates(made), "FFA")


@pytest.mark.parametrize("kind", ["factortopy", "blobgpt"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_pool_is_chosen_from_as_it_chooses_itself(
    make_engine: Any, candidates: Path, tmp_path: Path, kind: str, dtype: Any
) -> None:
    pool = Pool.build(make_engine(kind), candidates, path=tmp_path / "p", dtype=dtype)
    pool.remove([pool.names[4]])
    best = pool.top("FFA - PPA", 5)["FFA - PPA"]
    with Session(pool, "FFA - PPA", deadline_ms=60_000) as session:
        shown = [session.next() for _ in range(5)]
    assert [choice.image for choice in shown] == [candidate.name for candidate in best]
    scores = [candidate.score for candidate in best]
    np.testing.assert_allclose([choice.score for choice in shown], scores, rtol=1e-4, atol=1e-5)


def test_a_projected_pool_serves_sums_of_its_objectives(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine = make_engine("factortopy")
    whole = Pool.build(engine, candidates, path=tmp_path / "w", dtype="fp32")
    small = Pool.build(
        engine, candidates, path=tmp_path / "s", dtype="fp32", project=["FFA", "PPA", "V1v"]
    )
    first, second = (
        Session(pool, "FFA - 0.5*PPA", deadline_ms=60_000).next() for pool in (whole, small)
    )
    assert first.image == second.image
    assert first.score == pytest.approx(second.score, abs=1e-4)


def test_a_log_knows_its_pool_without_the_engine(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine, log = make_engine("blobgpt"), tmp_path / "s.jsonl"
    pool = Pool.build(engine, candidates, path=tmp_path / "p")
    with Session(pool, "FFA - PPA", log=log, deadline_ms=60_000) as session:
        choice = session.next()
        session.tell(choice, np.zeros(engine.space.V))
        session.next()
    assert replay(log, Pool.open(tmp_path / "p")).difference is None
    other = Pool.build(make_engine("factortopy"), candidates, path=tmp_path / "o")
    with pytest.raises(BrainfastError, match="of this model"):
        replay(log, other)
    pool.remove([pool.names[0]])
    with pytest.raises(BrainfastError, match="of this pool"):
        Session.resume(log, Pool.open(tmp_path / "p"))
    with Session.resume(log) as session:
        assert len(session.outstanding) == 1


def test_a_pool_without_its_engine_takes_no_objective(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "p")
    with pytest.raises(BrainfastError, match=r"Pool\.open\(path, engine\)"):
        Session(Pool.open(tmp_path / "p"), "FFA - PPA")


@pytest.mark.parametrize("project", [None, ["FFA", "PPA"]])
def test_engine_of_a_pool_may_be_given_to_the_session(
    make_engine: Any, candidates: Path, tmp_path: Path, project: Any
) -> None:
    engine = make_engine("blobgpt")
    pool = Pool.build(engine, candidates, path=tmp_path / "p", dtype="fp32", project=project)
    with Session(pool, "FFA - PPA", deadline_ms=60_000) as session:
        expected = session.next()
    bare = Pool.open(tmp_path / "p")
    with Session(bare, "FFA - PPA", engine=engine, deadline_ms=60_000) as session:
        found = session.next()
    assert (found.image, found.score) == (expected.image, expected.score)


@pytest.mark.parametrize("opened", [True, False])
def test_template_of_another_model_is_refused(
    make_engine: Any, candidates: Path, tmp_path: Path, opened: bool
) -> None:
    """The other head has as many features, so that nothing but the key tells."""
    engine, other = make_engine("blobgpt"), make_engine("blobgpt")
    pool = Pool.build(engine, candidates, path=tmp_path / "p")
    projection = other.head.projection
    changed = replace(projection, latent_bias=projection.latent_bias + 1)
    other.head = replace(other.head, projection=changed)
    with pytest.raises(BrainfastError, match="a pool of other folded head"):
        Session(pool if opened else Pool.open(pool.path), "FFA - PPA", engine=other)


def test_features_of_another_model_are_refused() -> None:
    engine: Any = FakeEngine(blobgpt())
    features = np.zeros((2, 6), np.float32)
    with pytest.raises(BrainfastError, match=r"features are of \(other\), got another \(model\)"):
        Session(ArrayCandidates(features, ["a", "b"], "other"), "FFA", engine=engine)
    for known in ("", "model"):
        Session(ArrayCandidates(features, ["a", "b"], known), "FFA", engine=engine).close()


def test_what_is_no_pool_is_refused() -> None:
    with pytest.raises(BrainfastError, match="a Pool, or Candidates, got list"):
        Session([1, 2, 3], "FFA")
