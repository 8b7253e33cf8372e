"""The lane of the engine: requests wait for one another, and go through it together."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..group_engine import GroupEngine
from ..machine import usable_cores
from ..pool_fill import Projection
from .lane import Clock, Lane, Place, within
from .limits import Limits
from .metrics import Metrics
from .pictures import Decoded, Image, Room, Share, check_count, decoded
from .refusal import Refusal
from .scoring import Basis, Folded, FoldedCache, fold
from .subjects import by_subject, key_of

Rows: TypeAlias = dict[str, NDArray[np.float32]]  # subject -> [B,V], or [B,F] of features
Prepare: TypeAlias = Callable[[], tuple[tuple[str, ...], Folded | None]]

HELD = 4  # times `limits.pixels`, which the images of all requests may hold together


@dataclass(frozen=True, eq=False)
class Wish:
    """What a request wants of its images: responses of some subjects, or scores of one.

    share: room that its images take, until it is done or nobody wants it any more
    folded: the objectives to score by, None where responses are wanted
    """

    images: list[Decoded]
    share: Share
    subjects: tuple[str, ...]
    folded: Folded | None = None

    @property
    def basis(self) -> Basis:
        """What is computed of its images."""
        return "response" if self.folded is None else self.folded.basis

    def answer(self, rows: Rows) -> Any:
        """Responses {subject: [B,V]} or scores [B,O], of its part of what was computed."""
        if self.folded is None:
            return {subject: rows[subject] for subject in self.subjects}
        return self.folded.score(rows[self.subjects[0]])


Wishes: TypeAlias = Sequence[Wish | None]  # None warms the engine up


class EngineLane:
    """One thread that owns the engine, and a bounded queue before it.

    Requests that wait for the same kind of answer go through the engine together, up to
    `limits.images` images; of several subjects all that are asked for are read out of one trunk
    pass. Where a batch fails, each of its requests is tried alone, so that nobody is refused for
    another's images. Files are decoded on threads of their own before that, where there is room
    for their pixels beside those of all others that wait.

    Whether an answer's bits depend on what it was batched with is the trunk runtime's to say: those
    of "compile" do not, it runs image by image; torch, ONNX Runtime and TensorRT, and a GPU's head,
    promise no order of summation and so the tolerance of their precision alone. Scores, and heads
    on the CPU, take no notice of the other images.
    """

    def __init__(
        self,
        engine: Engine | GroupEngine,
        limits: Limits,
        metrics: Metrics,
        *,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._engine, self._limits, self._metrics = engine, limits, metrics
        self.engines = by_subject(engine)
        self._folded = FoldedCache()
        self._room = Room(HELD * limits.pixels)
        threads = min(4, usable_cores())
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="brainfast-decode")
        self._lane: Lane[Wish | None] = Lane(
            "engine",
            limits.waiting,
            self._work,
            joins=self._joins,
            clock=clock,
            changed=changed,
            dropped=_release,
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who it answers for; "" is the one subject of a plain engine."""
        return tuple(self.engines)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._lane.waiting

    @property
    def stalled(self) -> bool:
        """Whether the present batch takes longer than `limits.stall_s`."""
        return self._lane.running_s >= self._limits.stall_s

    async def warm_up(self) -> None:
        """Run blank images in batches of 1, 2, 4, ... up to the largest; no time limit."""
        await self._lane.answer(self._lane.submit(None, float("inf"), keep=True), None)

    async def predict(
        self, images: Sequence[Image], subjects: Sequence[str] | None, seconds: float
    ) -> Rows:
        """Responses {subject: [B,V]}; of a plain engine the key is ""."""
        chosen = self._chosen(subjects)
        answer: Rows = await self._answer(images, seconds, lambda: (chosen, None))
        return answer

    async def score(
        self, images: Sequence[Image], objective: Any, subject: str | None, seconds: float
    ) -> NDArray[np.float64]:
        """Scores [B,O] of one subject."""
        one = key_of(self.engines, subject)

        def folded() -> tuple[tuple[str, ...], Folded]:
            engine, most = self.engines[one], self._limits.objectives
            return (one,), self._folded.get(one, objective, lambda: fold(engine, objective, most))

        answer: NDArray[np.float64] = await self._answer(images, seconds, folded)
        return answer

    def close(self, refuse: Callable[[], Refusal]) -> None:
        """Refuse what comes from now on."""
        self._lane.close(refuse)

    async def ended(self, seconds: float) -> bool:
        """Wait so long for what was accepted; whether all of it was answered."""
        return await self._lane.ended(seconds)

    def abandon(self) -> None:
        """Refuse what is left of a closed lane."""
        self._lane.abandon()
        self._decoders.shutdown(wait=False)

    async def _answer(self, images: Sequence[Image], seconds: float, prepare: Prepare) -> Any:
        check_count(images, self._limits)
        if self.stalled:
            raise self._stalled()
        place = self._lane.place()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        preparing = self._decoders.submit(self._prepare, images, prepare)
        try:
            wish = await within(asyncio.shield(asyncio.wrap_future(preparing)), seconds, "images")
        except BaseException:
            # Its threads go on where nobody waits: until then it takes room.
            preparing.add_done_callback(lambda done: _give_up(place, done))
            raise
        left = end - loop.time()
        return await self._lane.answer(self._lane.submit(wish, left, place=place), left)

    def _prepare(self, images: Sequence[Image], prepare: Prepare) -> Wish:
        subjects, folded = prepare()
        share = Share(self._room)
        try:
            wish = Wish(decoded(images, self._limits, share.take), share, subjects, folded)
        except BaseException:
            share.release()
            raise
        weakref.finalize(wish, share.release).atexit = False
        return wish

    def _chosen(self, subjects: Sequence[str] | None) -> tuple[str, ...]:
        if subjects is None:
            return self.subjects
        if not subjects:
            raise Refusal("invalid", "subjects", expected="one at least", got="none")
        return tuple(dict.fromkeys(key_of(self.engines, subject) for subject in subjects))

    def _stalled(self) -> Refusal:
        return Refusal(
            "stalled",
            "engine",
            expected=f"a batch within {self._limits.stall_s:g} s",
            got=f"one that has taken {self._lane.running_s:.1f} s",
            remedy="sessions go on; ask again later, or look at the server's machine",
            retry_after_s=self._limits.stall_s,
        )

    def _joins(self, wish: Wish | None, batch: Wishes) -> bool:
        first = batch[0]
        if first is None or wish is None or first.basis != wish.basis:
            return False
        count = sum(len(other.images) for other in batch if other is not None)
        return count + len(wish.images) <= self._limits.images

    def _work(self, batch: Wishes) -> Sequence[Any]:
        wishes = [wish for wish in batch if wish is not None]
        if not wishes:
            self._engine.warm_up(warm_batches(self._limits.images))
            return [None]
        try:
            return self._answers(wishes)
        finally:  # an error keeps its frames, and these the wishes, until they are collected
            for wish in wishes:
                _release(wish)

    def _answers(self, wishes: Sequence[Wish]) -> list[Any]:
        try:
            return self._run(wishes)
        except Exception as error:
            return [error] if len(wishes) == 1 else [self._answers([wish])[0] for wish in wishes]

    def _run(self, wishes: Sequence[Wish]) -> list[Any]:
        images = [image for wish in wishes for image in wish.images]
        self._metrics.batch_images.observe(len(images))
        wanted = [name for name in self.subjects if any(name in w.subjects for w in wishes)]
        found = self._computed(images, wanted, wishes[0].basis)
        answers, first = [], 0
        for wish in wishes:
            part = slice(first, first + len(wish.images))
            answers.append(wish.answer({name: rows[part] for name, rows in found.items()}))
            first = part.stop
        self._metrics.images_total.inc(len(images))
        return answers

    def _computed(self, images: list[Decoded], subjects: Sequence[str], basis: Basis) -> Rows:
        if basis == "features":  # which are the same for every subject
            rows = Projection(self.engines[subjects[0]], None).features(images)
            return dict.fromkeys(subjects, rows)
        batch = self._limits.images
        if isinstance(self._engine, GroupEngine):
            found = self._engine.predict(images, subjects=subjects, batch_size=batch)
            return {subject: response.values for subject, response in found.items()}
        return {"": self._engine.predict(images, batch_size=batch).values}


def _release(wish: Wish | None) -> None:
    """Give its room back; a wish itself may be kept by the frames of an error for a while."""
    if wish is not None:
        wish.share.release()


def _give_up(place: Place, preparing: Future[Wish]) -> None:
    place.release()
    if not preparing.cancelled() and preparing.exception() is None:
        _release(preparing.result())


def warm_batches(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the most itself."""
    powers = [1 << n for n in range(most.bit_length()) if 1 << n < most]
    return (*powers, most)
