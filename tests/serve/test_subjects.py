"""A server of several subjects: whose candidates are chosen, and whose sessions are open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import read_log
from brainfast.objective import Objective
from brainfast.pool import Pool
from brainfast.serve.client import AsyncClient
from brainfast.serve.service import Service
from brainfast.serve.zmq_server import ZmqServer
from serve_http import assert_refused, client
from serve_world import asked, engine, file, group, on_loop, picture, pool, refusal, service

N = 9
VERTICES = {"a": 30, "b": 20}
GOAL = "FFA - PPA"


def built(place: Path, **options: Any) -> Pool:
    """N pictures, computed with the engine of subject a."""
    (place / "candidates").mkdir()
    for seed in range(N):
        (place / "candidates" / f"{seed}.png").write_bytes(file(seed))
    own = group().of("a")
    return Pool.build(own, place / "candidates", path=place / "pool", dtype="fp32", **options)


async def of_a_group(place: Path, **options: Any) -> Service:
    """Subjects a and b, on one pool."""
    served = service(group(), candidates=built(place, **options), logs=place / "logs")
    await served.start()
    return served


def expected(subject: str) -> np.ndarray:
    """Scores [N] by the objective's own sum over the predicted responses."""
    one = group()
    responses = one.predict([picture(seed) for seed in range(N)], subjects=[subject])
    return responses[subject].values @ Objective.of(GOAL).weights(one.spaces[subject])[0]


@on_loop
async def test_candidates_are_those_of_the_subject(tmp_path: Path) -> None:
    served = await of_a_group(tmp_path)
    orders = []
    for subject in VERTICES:
        (found,) = await served.select(GOAL, N, subject=subject)
        scores = expected(subject)
        order = np.argsort(-scores)
        assert [one.row for one in found] == order.tolist()
        np.testing.assert_allclose([one.score for one in found], scores[order], atol=1e-5)
        orders.append(order.tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize("subject", [None, "c", ""])
@on_loop
async def test_of_several_subjects_one_is_named(tmp_path: Path, subject: str | None) -> None:
    served = await of_a_group(tmp_path)
    for work in (
        served.select(GOAL, 1, subject=subject),
        served.open_session("run", asked(subject=subject)),
    ):
        assert "subject: expected one of a, b" in str(await refusal(work))
    assert not list((tmp_path / "logs").glob("*"))


@pytest.mark.parametrize("subject", ["a", "b"])
@on_loop
async def test_a_session_is_its_subjects(tmp_path: Path, subject: str) -> None:
    served = await of_a_group(tmp_path)
    state = await served.open_session("run", asked(subject=subject))
    assert state.subject == subject
    choice = await served.next("run", 0)
    assert choice.image == f"{expected(subject).argmax()}.png"
    for other, count in VERTICES.items():
        if other != subject:
            with pytest.raises(BrainfastError, match=f"betas \\[{VERTICES[subject]}\\]"):
                await served.tell("run", 0, np.ones(count))
    await served.tell("run", 0, np.ones(VERTICES[subject]), subject=subject)
    assert read_log(tmp_path / "logs/run.jsonl").header["subject"] == subject


@pytest.mark.parametrize("closed", [True, False])
@on_loop
async def test_a_session_is_resumed_by_its_own_subject(tmp_path: Path, closed: bool) -> None:
    served = await of_a_group(tmp_path)
    await served.open_session("run", asked(subject="b"))
    choice = await served.next("run", 0)
    if closed:
        await served.close_session("run")
    other = await refusal(served.open_session("run", asked(resume=True, subject="a")))
    assert (other.code, other.name, "'b'" in str(other)) == ("conflict", "subject", True)
    for named in ("b", None):
        state = await served.open_session("run", asked(resume=True, subject=named))
        assert (state.subject, state.trials) == ("b", 1)
    assert await served.next("run", 0) == choice


@on_loop
async def test_candidates_of_a_labs_own_serve_every_subject(tmp_path: Path) -> None:
    served = service(group(), candidates=pool(), logs=tmp_path)
    await served.start()
    first = {}
    for subject in VERTICES:
        await served.open_session(subject, asked(subject=subject))
        first[subject] = (await served.next(subject, 0)).score
    assert first["a"] != first["b"]


@on_loop
async def test_a_model_of_one_needs_no_name(tmp_path: Path) -> None:
    served = service(candidates=pool(), logs=tmp_path)
    await served.start()
    for number, subject in enumerate([None, "subj01"]):
        state = await served.open_session(f"run-{number}", asked(subject=subject))
        assert state.subject == "subj01"
        assert (await served.open_session(f"run-{number}", asked(resume=True))).trials == 0
    wrong = await refusal(served.open_session("run", asked(subject="a")))
    assert "subject: expected one of subj01, got 'a'" in str(wrong)


@on_loop
async def test_scores_alone_are_one_subjects(tmp_path: Path) -> None:
    served = await of_a_group(tmp_path, project=[GOAL])
    pool_about = served.about().pool
    assert pool_about is not None
    assert (pool_about.kind, pool_about.subject) == ("projection", "a")
    (best,) = await served.select(GOAL, 1, subject="a")
    assert best[0].row == expected("a").argmax()
    with pytest.raises(BrainfastError, match="the same folded head"):
        await served.select(GOAL, 1, subject="b")
    with pytest.raises(BrainfastError, match="the same folded head"):
        await served.open_session("run", asked(subject="b"))
    assert not list((tmp_path / "logs").glob("*"))


@on_loop
async def test_a_pool_tells_whose_it_is(tmp_path: Path) -> None:
    served = await of_a_group(tmp_path)
    shared, own = served.about().pool, service(engine(), candidates=None).about().pool
    assert shared is not None
    assert (shared.subject, own) == (None, None)
    alone = service(candidates=Pool.open(tmp_path / "pool", engine())).about().pool
    assert alone is not None
    assert alone.subject == "subj01"


@on_loop
async def test_over_http(tmp_path: Path) -> None:
    served = await of_a_group(tmp_path)
    async with client(served) as http:
        for body, status in (({}, 400), ({"subject": "b"}, 200)):
            chosen = await http.post("/v1/select", json={"objective": GOAL, "k": 1} | body)
            opened = await http.put("/v1/sessions/run", json={"objective": GOAL} | body)
            assert (chosen.status_code, opened.status_code) == (status, status)
            if status == 400:
                assert_refused(chosen, 400, "invalid", "one of a, b")
                assert_refused(opened, 400, "invalid", "one of a, b")
        assert chosen.json()["candidates"][0][0]["row"] == expected("b").argmax()
        assert opened.json()["subject"] == "b"


@on_loop
async def test_over_zeromq(tmp_path: Path) -> None:
    served = await of_a_group(tmp_path)
    async with (
        ZmqServer(served, f"ipc://{tmp_path}/zmq") as server,
        AsyncClient(server.address) as asking,
    ):
        ((best,),) = await asking.select(GOAL, 1, subject="b")
        assert best.row == expected("b").argmax()
        session = await asking.session("run", GOAL, subject="b")
        assert session.state.subject == "b"
        assert "one of a, b" in str(await refusal(asking.session("other", GOAL)))
