"""Betas of another subject or of other vertices are refused, before and after a resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast import Pool, Session
from brainfast.errors import BrainfastError
from brainfast.loop import read_log
from brainfast.response import Response
from brainfast.vertex_space import VertexSpace
from loop_world import V, betas, objective, pool, session


def space(subject: str | None = "subj01", first: int = 0) -> VertexSpace:
    return VertexSpace("fsaverage5", np.arange(3), np.arange(first, first + V - 3), {}, subject)


def owned() -> Session:
    goal = replace(objective(), space_hash=space().hash(), subject="subj01")
    return Session(pool(), goal, deadline_ms=60_000.0)


def response(images: int = 1, **about: Any) -> Response:
    return Response(np.zeros((images, V), np.float32), space(**about))


@pytest.mark.parametrize(
    ("measured", "options", "message"),
    [
        (response(subject="subj02"), {}, r"betas of subj01 \(vertices .*those of subj02 \("),
        (response(first=1), {}, r"betas of subj01 .*those of subj01 \(vertices"),
        (response(subject=None), {"subject": "subj02"}, r"of subj01 .*those of subj02"),
        (response(subject="subj02"), {"subject": "subj01"}, "subject: expected subj02, .*subj01"),
        (response(), {"subject": "subj02"}, "subject: expected subj01, .*got subj02"),
        (np.zeros(V), {"subject": "subj02"}, r"those of subj02 \(vertices of an unknown space\)"),
        (response(images=2), {}, "the response to one image, got to 2"),
    ],
)
def test_betas_of_others_are_refused(measured: Any, options: Any, message: str) -> None:
    with owned() as running:
        choice = running.next()
        with pytest.raises(BrainfastError, match=message):
            running.tell(choice, measured, **options)
        assert running.outstanding == (choice,)


@pytest.mark.parametrize(
    ("measured", "options"),
    [
        (response(), {}),
        (response(), {"subject": "subj01"}),
        (response(subject=None), {}),
        (np.zeros(V), {"subject": "subj01"}),
        (np.zeros(V), {}),
    ],
)
def test_betas_of_the_subject_are_taken(measured: Any, options: Any) -> None:
    with owned() as running:
        running.tell(running.next(), measured, **options)
        assert running.outstanding == ()


def test_a_response_means_what_its_values_mean() -> None:
    after = []
    for wrap in (lambda values: values, lambda values: Response(values[None], space())):
        with owned() as running:
            choice = running.next()
            running.tell(choice, wrap(betas(choice)))
            assert running.wait(30)
            after.append(running.next().score)
    assert after[0] == after[1]


def test_a_session_without_a_space_takes_any() -> None:
    with session() as running:
        running.tell(running.next(), response())
        running.tell(running.next(), response(subject=None), subject="anybody")


def test_a_resumed_session_knows_its_subject(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine, log = make_engine("blobgpt"), tmp_path / "s.jsonl"
    made = Pool.build(engine, candidates, path=tmp_path / "p")
    with Session(made, "FFA", log=log, deadline_ms=60_000) as running:
        choice = running.next()
    header = read_log(log).header
    assert (header["space_hash"], header["subject"]) == (engine.space.hash(), "subj01")
    with Session.resume(log) as running:
        with pytest.raises(BrainfastError, match="betas of subj01"):
            running.tell(choice, np.zeros(engine.space.V), subject="subj02")
        running.tell(choice, np.zeros(engine.space.V), subject="subj01")
