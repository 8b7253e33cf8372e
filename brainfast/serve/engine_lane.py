"""The lane of the engine: requests wait for one another, and go through it together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..errors import BrainfastError
from ..group_engine import GroupEngine
from ..machine import usable_cores
from ..pool_build import Projection
from .lane import Clock, Job, Lane, Place
from .limits import Limits
from .metrics import Metrics
from .pictures import Image, Pixels, check_count, decoded
from .refusal import Refusal
from .scoring import Folded, FoldedCache, fold

Responses: TypeAlias = dict[str, NDArray[np.float32]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Wish:
    """What a request wants of its images: responses of some subjects, or scores.

    features: whether it needs what the head reads instead of responses
    """

    images: list[Pixels]
    subjects: tuple[str, ...]
    folded: Folded | None = None

    @property
    def features(self) -> bool:
        """Which of both is computed for it."""
        return self.folded is not None and self.folded.basis == "features"


class EngineLane:
    """One thread that owns the engine, and a bounded queue before it.

    Requests that wait for the same kind of answer go through the engine together, up to
    `limits.images` images; of several subjects all that are asked for are read out of one trunk
    pass. Where a batch fails, each of its requests is tried alone, so that nobody is refused for
    another's images. Files are decoded on threads of their own before that.

    Whether an answer's bits depend on what it was batched with is the trunk runtime's to say: those
    of "compile" never do; torch, ONNX Runtime and TensorRT may choose another order of summation
    for another number of images, within the tolerance of their precision. Scores and readouts on
    the CPU are computed row by row and add nothing to that.
    """

    def __init__(
        self,
        engine: Engine | GroupEngine,
        limits: Limits,
        metrics: Metrics,
        *,
        clock: Clock,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._engine, self._limits, self._metrics = engine, limits, metrics
        self._engines = _by_subject(engine)
        self._folded = FoldedCache()
        threads = min(4, usable_cores())
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="brainfast-decode")
        self._lane: Lane[Wish | None] = Lane(
            "engine", limits.waiting, self._work, joins=self._joins, clock=clock, changed=changed
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who it answers for; "" is the one subject of a plain engine."""
        return tuple(self._engines)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._lane.waiting

    @property
    def stalled(self) -> bool:
        """Whether the present batch takes longer than `limits.stall_s`."""
        return self._lane.running_s > self._limits.stall_s

    async def warm_up(self) -> None:
        """Run blank images in batches of 1, 2, 4, ... up to the largest; no time limit."""
        await self._lane.answer(self._lane.submit(None, float("inf"), keep=True), None)

    async def predict(
        self, images: Sequence[Image], subjects: Sequence[str] | None, seconds: float
    ) -> Responses:
        """Responses {subject: [B,V]}; of a plain engine the key is ""."""
        chosen = self._chosen(subjects)
        answer: Responses = await self._answer(images, seconds, lambda: (chosen, None))
        return answer

    async def score(
        self, images: Sequence[Image], objective: Any, subject: str | None, seconds: float
    ) -> NDArray[np.float64]:
        """Scores [B,O] of one subject."""
        one = self._one(subject)

        def folded() -> tuple[tuple[str, ...], Folded]:
            engine, most = self._engines[one], self._limits.objectives
            return (one,), self._folded.get(one, objective, lambda: fold(engine, objective, most))

        answer: NDArray[np.float64] = await self._answer(images, seconds, folded)
        return answer

    def engine_of(self, subject: str | None = None) -> Engine:
        """The engine of one subject."""
        return self._engines[self._one(subject)]

    def close(self, refusal: Refusal) -> None:
        """Refuse what comes from now on."""
        self._lane.close(refusal)

    async def drain(self, seconds: float) -> bool:
        """Wait so long for what was accepted; whether all of it was answered."""
        done = await self._lane.drain(seconds)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        return done

    async def _answer(
        self,
        images: Sequence[Image],
        seconds: float,
        prepare: Callable[[], tuple[tuple[str, ...], Folded | None]],
    ) -> Any:
        check_count(images, self._limits)
        if self.stalled:
            raise self._stalled()
        place = self._lane.place()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        preparing = self._decoders.submit(self._prepare, images, prepare)
        wish = await _within(preparing, seconds, place)
        left = end - loop.time()
        return await self._lane.answer(self._lane.submit(wish, left, place=place), left)

    def _prepare(
        self,
        images: Sequence[Image],
        prepare: Callable[[], tuple[tuple[str, ...], Folded | None]],
    ) -> Wish:
        subjects, folded = prepare()
        return Wish(decoded(images, self._limits), subjects, folded)

    def _chosen(self, subjects: Sequence[str] | None) -> tuple[str, ...]:
        if subjects is None:
            return self.subjects
        return tuple(dict.fromkeys(self._one(subject) for subject in subjects))

    def _one(self, subject: str | None) -> str:
        """The key of a subject; None is the only one."""
        if subject in self._engines:
            return str(subject)
        only = next(iter(self._engines.values())) if len(self._engines) == 1 else None
        if only is not None and subject in (None, only.space.subject):
            return self.subjects[0]
        known = [name or self._engines[name].space.subject or "" for name in self._engines]
        raise Refusal(
            "invalid",
            "subject",
            expected=f"one of {', '.join(filter(None, known)) or 'none, of this model'}",
            got=repr(subject),
        )

    def _stalled(self) -> Refusal:
        return Refusal(
            "stalled",
            "engine",
            expected=f"a batch within {self._limits.stall_s:g} s",
            got=f"one that has taken {self._lane.running_s:.1f} s",
            remedy="sessions go on; ask again later, or look at the server's machine",
            retry_after_s=self._limits.stall_s,
        )

    def _joins(self, job: Job[Wish | None], batch: Sequence[Job[Wish | None]]) -> bool:
        first = batch[0].payload
        if first is None or job.payload is None or first.features != job.payload.features:
            return False
        count = sum(len(other.payload.images) for other in batch if other.payload is not None)
        return count + len(job.payload.images) <= self._limits.images

    def _work(self, batch: Sequence[Job[Wish | None]]) -> None:
        if batch[0].payload is None:
            self._engine.warm_up(warm_batches(self._limits.images))
            batch[0].finish(None)
            return
        wishes = [job.payload for job in batch if job.payload is not None]
        try:
            answers = self._run(wishes)
        except Exception as error:
            self._one_by_one(batch, wishes, error)
            return
        for job, answer in zip(batch, answers, strict=True):
            job.finish(answer)

    def _one_by_one(
        self, batch: Sequence[Job[Wish | None]], wishes: Sequence[Wish], error: Exception
    ) -> None:
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for job, wish in zip(batch, wishes, strict=True):
            try:
                job.finish(self._run([wish])[0])
            except Exception as own:
                job.fail(own)

    def _run(self, wishes: Sequence[Wish]) -> list[Any]:
        images = [image for wish in wishes for image in wish.images]
        ends = np.cumsum([len(wish.images) for wish in wishes])
        parts = [slice(end - len(w.images), end) for end, w in zip(ends, wishes, strict=True)]
        self._metrics.batch_images.observe(len(images))
        if wishes[0].features:
            rows = Projection(next(iter(self._engines.values())), None).features(images)
            answers = [_scored(wish, rows[part]) for wish, part in zip(wishes, parts, strict=True)]
        else:
            found = self._responses(images, wishes)
            answers = [
                _picked(wish, {subject: found[subject][part] for subject in wish.subjects})
                for wish, part in zip(wishes, parts, strict=True)
            ]
        self._metrics.images_total.inc(len(images))
        return answers

    def _responses(self, images: list[Pixels], wishes: Sequence[Wish]) -> Responses:
        wanted = {subject for wish in wishes for subject in wish.subjects}
        batch = self._limits.images
        if isinstance(self._engine, GroupEngine):
            subjects = [subject for subject in self._engine.subjects if subject in wanted]
            found = self._engine.predict(images, subjects=subjects, batch_size=batch)
            return {subject: response.values for subject, response in found.items()}
        return {"": self._engine.predict(images, batch_size=batch).values}


def warm_batches(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the most itself."""
    powers = [1 << n for n in range(most.bit_length()) if 1 << n < most]
    return (*powers, most)


async def _within(preparing: Future[T], seconds: float, place: Place) -> T:
    return await asyncio.wrap_future(preparing)


def _by_subject(engine: Engine | GroupEngine) -> dict[str, Engine]:
    if isinstance(engine, GroupEngine):
        return {subject: engine.of(subject) for subject in engine.subjects}
    return {"": engine}


def _scored(wish: Wish, rows: NDArray[np.float32]) -> Any:
    assert wish.folded is not None
    return wish.folded.score(rows)


def _picked(wish: Wish, responses: Responses) -> Any:
    if wish.folded is None:
        return responses
    return wish.folded.score(responses[wish.subjects[0]])
