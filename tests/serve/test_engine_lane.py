"""Requests that share an engine: batches, time-outs, stalls."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.objective import Objective
from brainfast.serve.engine_lane import warm_batches
from brainfast.serve.scoring import FoldedCache, fold, reads_features
from brainfast.serve.service import Service
from serve_world import (
    WHITE,
    TestClock,
    engine,
    file,
    group,
    happens,
    on_loop,
    picture,
    refusal,
    service,
)


async def started(*given: Any, **options: Any) -> Service:
    """A service that is ready, whose trunk has seen nothing but the warm-up."""
    served = service(*given, **options)
    await served.start()
    served.engine.runtime.seen.clear()
    return served


async def queued(served: Service, *requests: Any) -> list[asyncio.Task[Any]]:
    """Requests on their way, all of which wait in the queue by now."""
    before = served._engine_lane.waiting
    tasks = [asyncio.ensure_future(request) for request in requests]
    while served._engine_lane._lane.queued < before + len(requests):
        await asyncio.sleep(0)
    return tasks


@on_loop
async def test_warms_up_every_size() -> None:
    served = service(images=12)
    assert served.state == "starting"
    assert (await refusal(served.predict([picture(1)]))).code == "starting"
    await served.start()
    assert served.engine.runtime.seen == [1, 2, 4, 8, 12]
    assert served.state == "ready"
    assert warm_batches(1) == (1,)
    assert warm_batches(32) == (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("kind", ["blobgpt", "factortopy"])
@on_loop
async def test_waiting_requests_share_a_batch_and_get_the_bits_they_get_alone(kind: str) -> None:
    served = await started(engine(kind))
    requests = [[picture(1)], [file(2), picture(3)], [picture(n) for n in range(4, 9)]]
    alone = [(await served.predict(images))[""] for images in requests]
    served.engine.runtime.seen.clear()
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    tasks = await queued(served, *(served.predict(images) for images in requests))
    gate.open()
    together = await asyncio.gather(*tasks)
    assert served.engine.runtime.seen == [1, 8]
    for one, answer in zip(alone, together, strict=True):
        np.testing.assert_array_equal(answer[""], one)
    assert (await first)[""].shape == (1, 30)


@on_loop
async def test_a_batch_has_its_limit_and_later_requests_that_fit_go_along() -> None:
    served = await started(images=4)
    gate = served.engine.runtime.next_gate()
    sizes = [1, 3, 2, 1]
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    tasks = []
    for number, size in enumerate(sizes):
        tasks += await queued(served, served.predict([picture(number)] * size))
    gate.open()
    answers = await asyncio.gather(first, *tasks)
    assert [len(answer[""]) for answer in answers] == [1, *sizes]
    assert served.engine.runtime.seen == [1, 4, 3]


@on_loop
async def test_scores_and_responses_are_batches_of_their_own() -> None:
    served = await started()
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    tasks = await queued(
        served,
        served.predict([picture(1)]),
        served.score([picture(2)], "FFA"),
        served.predict([picture(3)]),
        served.score([picture(4)] * 2, ["PPA", "FFA"]),
    )
    gate.open()
    answers = await asyncio.gather(first, *tasks)
    assert served.engine.runtime.seen == [1, 2, 3]
    assert [answers[2].shape, answers[4].shape] == [(1, 1), (2, 2)]


@on_loop
async def test_subjects_are_read_out_of_one_pass_and_split() -> None:
    model = group()
    served = await started(model)
    images = [picture(1), picture(2)]
    expected = model.predict(images)
    gate = model.runtime.next_gate()
    first = asyncio.ensure_future(served.predict(images))
    await happens(gate.entered)
    model.runtime.seen.clear()
    tasks = await queued(
        served,
        served.predict(images[:1], subjects=["b"]),
        served.predict(images, subjects=["a", "b", "a"]),
    )
    gate.open()
    both, b, chosen = await asyncio.gather(first, *tasks)
    assert model.runtime.seen == [3]
    assert list(b) == ["b"]
    for answer in (both, chosen):
        assert list(answer) == ["a", "b"]
        for subject in answer:
            np.testing.assert_array_equal(answer[subject], expected[subject].values)
    np.testing.assert_array_equal(b["b"], expected["b"].values[:1])


@on_loop
async def test_whose_response() -> None:
    served = await started()
    assert list(await served.predict([picture(1)], subjects=["subj01"])) == [""]
    assert (await served.score([picture(1)], "FFA", subject="subj01")).shape == (1, 1)
    wrong = await refusal(served.predict([picture(1)], subjects=["subj02"]))
    assert (wrong.code, "one of subj01" in str(wrong)) == ("invalid", True)
    many = await started(group())
    assert "one of a, b" in str(await refusal(many.score([picture(1)], "FFA")))
    assert (await refusal(many.predict([picture(1)], subjects=[]))).code == "invalid"


@pytest.mark.parametrize("kind", ["blobgpt", "factortopy"])
@pytest.mark.parametrize("objective", ["FFA - PPA", ["FFA", "mean(V1v) + 0.5*PPA"]])
@on_loop
async def test_a_score_is_the_weighted_response(kind: str, objective: Any) -> None:
    served = await started(engine(kind))
    images = [picture(n) for n in range(5)]
    weights = Objective.of(objective).weights(served.engine.space).astype(np.float64)
    expected = served.engine.predict(images).values.astype(np.float64) @ weights.T
    scores = await served.score(images, objective)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    alone = [(await served.score([image], objective))[0] for image in images]
    np.testing.assert_array_equal(scores, alone)
    ours = await served.score(images, weights.astype(np.float32))
    np.testing.assert_allclose(ours, scores, rtol=1e-4, atol=1e-5)


def test_the_cheaper_way_to_a_score() -> None:
    whole = engine("factortopy")  # 2 layers of 4 x (2 x 2 + 1) features: 40; 30 vertices
    assert reads_features(whole, 1)
    part = whole.take(np.arange(2))
    assert reads_features(part, 1) == (40 <= 2 * (40 + 1))
    assert not reads_features(part, 64)
    by = {fold(one, "all", 64).basis for one in (whole, engine("blobgpt"))}
    assert by == {"features"}
    some = picture(3)
    weights = np.ones((64, 2), np.float32)
    folded = fold(part, weights, 64)
    assert folded.basis == "response"
    response = part.predict([some]).values
    np.testing.assert_allclose(folded.score(response)[0], response.sum(axis=1)[0], rtol=1e-6)


def test_folded_objectives_are_kept_up_to_a_size() -> None:
    model = engine()
    made = []

    def make(text: Any) -> Any:
        made.append(text)
        return fold(model, text, 64)

    size = fold(model, "FFA", 64).matrix.nbytes
    cache = FoldedCache(2 * size)
    for text in ("FFA", "PPA", ["PPA"], "V1", "PPA", "FFA", "PPA"):
        cache.get("", text, lambda text=text: make(text))
    assert made == ["FFA", "PPA", "V1", "FFA"]  # not PPA again, which was used after V1
    assert len(cache) == 2
    weights = np.ones(30, np.float32)
    cache.get("", weights, lambda: make(weights))
    assert len(cache) == 2
    other = cache.get("b", "PPA", lambda: fold(model, "FFA", 64))
    np.testing.assert_array_equal(other.matrix, fold(model, "FFA", 64).matrix)


@on_loop
async def test_a_full_queue_is_busy_and_works_on() -> None:
    served = await started(waiting=2)
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    tasks = await queued(served, served.predict([picture(1)]), served.predict([picture(2)]))
    busy = await refusal(served.predict([picture(3)]))
    assert busy.code == "busy"
    assert busy.retry_after_s is not None
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    tasks += await queued(served, served.predict([picture(4)]))  # in the place that became free
    gate.open()
    answers = await asyncio.gather(first, *tasks[1:])
    assert [len(answer[""]) for answer in answers] == [1, 1, 1]
    assert served.engine.runtime.seen == [1, 2]
    assert (await served.predict([picture(3)]))[""].shape == (1, 30)


@on_loop
async def test_pixels_that_wait_have_a_bound_and_their_room_is_given_back() -> None:
    served = await started(pixels=picture(0).size // 3)  # so four images may be held
    served.engine.runtime.poison = ArithmeticError("white")
    for _ in range(2):
        gate = served.engine.runtime.next_gate()
        first = asyncio.ensure_future(served.predict([picture(0)]))
        await happens(gate.entered)
        tasks = await queued(served, *(served.predict([file(n)]) for n in (1, 2)))
        tasks += await queued(served, served.predict([WHITE]))
        tasks.pop(0).cancel()
        while served._engine_lane.waiting > 2:
            await asyncio.sleep(0)
        with pytest.raises(BrainfastError, match=r"images\[0\]"):
            await served.predict([file(3)[:60]])
        tasks += await queued(served, served.score([picture(3)], "FFA"))
        busy = await refusal(served.predict([picture(4)]))
        assert (busy.code, busy.name, busy.retry_after_s) == ("busy", "images", 0.5)
        assert served._engine_lane.waiting == 3
        gate.open()
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [dict, dict, ArithmeticError, np.ndarray]


@on_loop
async def test_a_turn_that_comes_too_late_is_not_begun() -> None:
    clock = TestClock()
    served = await started(clock=clock)
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    late, soon = await queued(
        served,
        served.predict([picture(1)], timeout_s=5),
        served.predict([picture(2), picture(3)], timeout_s=20),
    )
    clock.now += 6
    gate.open()
    assert (await refusal(late)).code == "timed_out"
    assert len((await soon)[""]) == 2
    assert len((await first)[""]) == 1
    assert served.engine.runtime.seen == [1, 2]


@on_loop
async def test_nobody_waits_longer_than_the_request_says() -> None:
    served = await started()
    gate = served.engine.runtime.next_gate()
    asked = served.predict([picture(0)], timeout_s=0.02)
    assert (await refusal(asked)).code == "timed_out"  # while the trunk is still at it
    gate.open()
    assert len((await served.predict([picture(1)]))[""]) == 1


@pytest.mark.parametrize("seconds", [0, -1, 31, float("nan"), True])
@on_loop
async def test_a_time_out_has_its_bounds(seconds: Any) -> None:
    served = await started()
    wrong = await refusal(served.predict([picture(1)], timeout_s=seconds))
    assert (wrong.code, wrong.name) == ("invalid", "timeout_s")


@on_loop
async def test_a_request_whose_caller_went_away_is_not_begun() -> None:
    served = await started()
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    gone, stays = await queued(served, served.predict([picture(1)] * 2), served.predict([WHITE]))
    gone.cancel()
    await asyncio.wait([gone])
    gate.open()
    await asyncio.gather(first, stays)
    assert served.engine.runtime.seen == [1, 1]


@on_loop
async def test_a_stalled_trunk_refuses_at_once_and_works_when_it_returns() -> None:
    clock = TestClock()
    served = await started(clock=clock, stall_s=10.0)
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    (waits,) = await queued(served, served.predict([picture(1)]))
    clock.now += 9.9
    assert served.state == "ready"
    clock.now += 0.2
    assert served.state == "stalled"
    stalled = await refusal(served.predict([picture(2)]))
    assert (stalled.code, stalled.retry_after_s) == ("stalled", 10.0)
    assert b"brainfast_stalled 1.0" in served.metrics.text()
    gate.open()
    await asyncio.gather(first, waits)
    assert served.state == "ready"
    assert len((await served.predict([picture(2)]))[""]) == 1
    assert b"brainfast_stalled 0.0" in served.metrics.text()


@on_loop
async def test_a_stall_and_its_end_are_told_without_anybody_asking() -> None:
    served = await started(stall_s=0.02)
    events = served.events.subscribe()
    gate = served.engine.runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    assert (await anext(events)).state == "stalled"
    gate.open()
    assert (await anext(events)).state == "ready"
    await first


@on_loop
async def test_an_error_is_told_to_those_alone_whose_images_made_it() -> None:
    served = await started()
    runtime = served.engine.runtime
    runtime.poison = ArithmeticError("white")
    gate = runtime.next_gate()
    first = asyncio.ensure_future(served.predict([picture(0)]))
    await happens(gate.entered)
    tasks = await queued(
        served, *(served.predict([image]) for image in (picture(1), WHITE, picture(2)))
    )
    gate.open()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(answers.pop(2), ArithmeticError)
    assert [len(answer[""]) for answer in answers] == [1, 1, 1]
    assert runtime.seen == [1, 3, 1, 1, 1]


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit(3), KeyboardInterrupt()])
@on_loop
async def test_no_error_of_the_engine_ends_the_lane(error: Any) -> None:
    served = await started()
    served.engine.runtime.poison = error
    with pytest.raises(RuntimeError):
        await served.predict([WHITE])
    assert len((await served.predict([picture(1)]))[""]) == 1


@on_loop
async def test_numbers_are_counted() -> None:
    served = await started()
    await served.predict([picture(1)] * 3)
    text = served.metrics.text().decode()
    for line in ("images_total 3.0", "batch_images_sum 3.0", 'waiting{lane="engine"} 0.0'):
        assert f"brainfast_{line}" in text
    with pytest.raises(BrainfastError, match="FFB"):
        await served.score([picture(1)], "FFB")
