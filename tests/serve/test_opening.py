"""Opening a session: its name, its log, who asks, and how many there may be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from brainfast.errors import BrainfastError
from serve_world import asked, betas, kinds, on_loop, opened, pool, refusal, service, started


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../run",
        "a/b",
        "/etc/x",
        ".hidden",
        "-x",
        "a\0b",
        "a b",
        "é",
        "a" * 65,
        "a\n",
    ],
)
@on_loop
async def test_a_name_is_a_file_name_and_no_path(tmp_path: Path, name: str) -> None:
    served = await started(tmp_path / "logs")
    assert (await refusal(served.open_session(name, asked()))).code == "invalid"
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["a", "sub-01_run.2", "A" * 64, "0..1"])
@on_loop
async def test_names_that_a_lab_gives(tmp_path: Path, name: str) -> None:
    served = await started(tmp_path)
    assert (await served.open_session(name, asked())).log == f"{name}.jsonl"
    assert (tmp_path / f"{name}.jsonl").is_file()


@on_loop
async def test_without_a_pool_or_logs_there_are_no_sessions(tmp_path: Path) -> None:
    for served in (service(logs=tmp_path), service(candidates=pool())):
        await served.start()
        missing = await refusal(served.open_session("run", asked()))
        assert missing.code == "not_found"
        assert "brainfast serve MODEL --pool" in str(missing)


@on_loop
async def test_a_log_that_is_there_is_resumed_or_left_alone(tmp_path: Path) -> None:
    served = await opened(tmp_path)
    choices = [await served.next("run", trial) for trial in range(2)]
    await served.tell("run", 0, betas(0))
    await served.close_session("run")
    before = (tmp_path / "run.jsonl").read_bytes()
    there = await refusal(served.open_session("run", asked()))
    assert (there.code, "resume=true" in str(there)) == ("conflict", True)
    assert (tmp_path / "run.jsonl").read_bytes() == before
    assert (await refusal(served.open_session("new", asked(resume=True)))).code == "not_found"
    other = await refusal(served.open_session("run", asked(resume=True, strategy="explore")))
    assert (other.code, other.name) == ("conflict", "strategy")
    other = await refusal(served.open_session("run", asked(resume=True, objective="FFA")))
    assert (other.code, other.name) == ("conflict", "objective")
    state = await served.open_session("run", asked(resume=True))
    assert (state.trials, state.told, state.objectives) == (2, 1, ["FFA - PPA"])
    assert [await served.next("run", trial) for trial in range(2)] == choices
    await served.tell("run", 0, betas(0))
    assert (await served.next("run", 2)).trial == 2


@on_loop
async def test_a_log_that_another_server_writes_may_be_waited_for(tmp_path: Path) -> None:
    other = await opened(tmp_path)
    await other.next("run", 0)
    served = await started(tmp_path)
    held = await refusal(served.open_session("run", asked(resume=True)))
    assert (held.code, held.retry_after_s) == ("stalled", 1.0)
    assert "another session's" in str(held)
    await other.close_session("run")
    assert (await served.open_session("run", asked(resume=True))).trials == 1


@pytest.mark.parametrize(
    ("choices", "begun", "goes_on"),
    [
        (0, {}, True),
        (1, {}, False),
        (0, {"strategy": "ucb"}, False),
        (0, {"kappa": 2.0}, False),
        (0, {"exclude": ["image-00"]}, False),
        (0, {"objective": "FFA"}, False),
        (0, {"deadline_ms": 50_000.0}, False),
    ],
)
@on_loop
async def test_an_open_that_was_sent_before_goes_on_with_its_own_log_alone(
    tmp_path: Path, choices: int, begun: dict[str, Any], goes_on: bool
) -> None:
    before = await started(tmp_path)
    await before.open_session("run", asked(**begun))
    for trial in range(choices):
        await before.next("run", trial)
    await before.drain()
    log = (tmp_path / "run.jsonl").read_bytes()
    served = await started(tmp_path)
    if goes_on:
        assert (await served.open_session("run", asked(), again=True)).trials == 0
        return
    assert (await refusal(served.open_session("run", asked(), again=True))).code == "conflict"
    assert served.sessions() == []
    assert (tmp_path / "run.jsonl").read_bytes() == log


@on_loop
async def test_a_design_without_its_log_is_left_alone(tmp_path: Path) -> None:
    beside = tmp_path / "run.jsonl.design.safetensors"
    beside.write_bytes(b"of an older session")
    served = await started(tmp_path)
    there = await refusal(served.open_session("run", asked()))
    assert there.code == "conflict"
    assert beside.read_bytes() == b"of an older session"


@on_loop
async def test_a_session_is_opened_once_whoever_asks(tmp_path: Path) -> None:
    served = await started(tmp_path)
    states = await asyncio.gather(*(served.open_session("run", asked()) for _ in range(3)))
    assert states[0] == states[1] == states[2]
    await served.next("run", 0)
    assert (await refusal(served.open_session("run", asked()))).code == "conflict"
    again = await served.open_session("run", asked(resume=True))
    assert again.trials == 1
    other = await refusal(served.open_session("run", asked(resume=True, seed=9)))
    assert (other.code, other.name) == ("conflict", "seed")
    assert (await refusal(served.open_session("run", asked(seed=9)))).code == "conflict"
    assert kinds(tmp_path / "run.jsonl") == ["session", "choice"]


@on_loop
async def test_an_opening_that_fails_leaves_nothing(tmp_path: Path) -> None:
    served = await started(tmp_path, sessions=1)
    wrong = [served.open_session("run", asked(objective="FFB - PPA")) for _ in range(2)]
    for error in await asyncio.gather(*wrong, return_exceptions=True):
        assert isinstance(error, BrainfastError)
        assert "FFB" in str(error)
    assert served.sessions() == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BrainfastError, match="objective"):
        await served.open_session("run", asked(objective=None))
    assert (await served.open_session("run", asked())).trials == 0


@on_loop
async def test_so_many_sessions_may_be_open(tmp_path: Path) -> None:
    served = await started(tmp_path, sessions=2)
    await served.open_session("a", asked())
    await served.open_session("b", asked())
    full = await refusal(served.open_session("c", asked()))
    assert (full.code, full.status, full.retry_after_s) == ("too_many", 429, None)
    await served.close_session("a")
    await served.open_session("c", asked())
    assert served.sessions() == ["b", "c"]
