"""`brainfast rehearse` and `brainfast replay`, as a user types them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from brainfast import Pool, Session, cli_loop
from brainfast.boundary import explain
from brainfast.card import Card
from brainfast.cli import app
from brainfast.engine import Engine
from brainfast.loop import read_log
from brainfast.loop.log import decode_betas
from loop_world import edited, play, session

DEMO = ("rehearse", "--demo", "--trials", "8", "--speed", "inf")


def brainfast(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    error = brainfast(*arguments).exception
    assert isinstance(error, Exception)
    return str(explain(error))


def test_demo_prints_regret_and_times_and_writes_what_is_asked(tmp_path: Path) -> None:
    log, out = tmp_path / "s.jsonl", tmp_path / "run.png"
    run = brainfast(*DEMO, "--log", log, "--out", out)
    assert run.exit_code == 0, run.output
    assert "8 trials" in run.stdout
    assert re.search(r"mean regret .*; model alone \d.*, random \d", run.stdout)
    assert "lateness not paced" in run.stdout
    assert out.stat().st_size > 10_000
    again = brainfast("replay", log)
    assert again.exit_code == 0
    assert re.search(r"8 choices \(\d late\), 8 told", again.stdout)
    assert "to the last bit" in again.stdout


def test_a_model_is_rehearsed_with_its_pool(
    make_engine: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, log = make_engine("factortopy"), tmp_path / "s.jsonl"
    Pool.build(engine, candidates, path=tmp_path / "p")
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    monkeypatch.setattr(Card, "read", lambda *_: engine.card)
    monkeypatch.setattr(cli_loop, "check_sole", lambda *_: None)
    told = ("--trials", 9, "--speed", "inf", "--balance", "--log", log)
    run = brainfast("rehearse", "model", "--pool", tmp_path / "p", "--objective", "FFA", *told)
    assert run.exit_code == 0, run.output
    assert "FFA, greedy: 9 trials" in run.stdout
    assert "mean regret" in run.stdout
    assert "model alone" not in run.stdout, "it would not be balanced"
    header, first, *_ = read_log(log).events
    assert header["V"] == len(engine.space.roi("FFA"))
    assert (header["candidates"], header["options"]["balance"]) == (13, True)
    best = Pool.open(tmp_path / "p", engine).top("FFA", 1)["FFA"][0]
    assert first["image"] == best.name
    assert "to the last bit" in brainfast("replay", log, "--pool", tmp_path / "p").stdout
    many = brainfast("rehearse", "model", "--pool", tmp_path / "p", "--trials", 14)
    assert "at most 13, of 13 candidates" in str(many.exception)


def test_a_pool_is_rehearsed_in_the_precisions_that_it_was_built_with(
    make_engine: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, subject: Any, precision: Any, trunk_precision: str) -> Any:
        engine = make_engine("blobgpt")
        engine.head = engine.head.with_precision(precision)
        engine.runtime.precision = trunk_precision
        return engine

    engine = load(subject=None, precision="bf16", trunk_precision="bf16")
    Pool.build(engine, candidates, path=tmp_path / "p")
    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setattr(Card, "read", lambda *_: engine.card)
    monkeypatch.setattr(cli_loop, "check_sole", lambda *_: None)
    told = ("rehearse", "model", "--pool", tmp_path / "p", "--objective", "FFA", "--trials", 3)
    told = (*told, "--speed", "inf")
    run = brainfast(*told, "--precision", "bf16", "--trunk-precision", "bf16")
    assert run.exit_code == 0, run.output
    assert "FFA, greedy: 3 trials" in run.stdout
    assert "expected the same trunk precision, head precision, got" in refusal(*told)
    assert "the same trunk precision, got" in refusal(*told, "--precision", "bf16")
    assert "the same head precision, got" in refusal(*told, "--trunk-precision", "bf16")


def test_noise_is_that_of_the_ncsnr(
    make_engine: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ncsnr s is noise of variance 1 / (s^2 + 1): of 1e4 next to none, of 1 a half."""
    engine = make_engine("blobgpt")
    pool = Pool.build(engine, candidates, path=tmp_path / "p", dtype="fp32")
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    monkeypatch.setattr(Card, "read", lambda *_: engine.card)
    monkeypatch.setattr(cli_loop, "check_sole", lambda *_: None)
    vertices = engine.space.roi("FFA")  # those that are measured
    ratio = np.ones(engine.space.V, dtype=np.float32)
    ratio[vertices[::2]] = 1e4
    np.save(tmp_path / "lh.ncsnr.npy", ratio[: engine.space.lh.size])
    np.save(tmp_path / "rh.ncsnr.npy", ratio[engine.space.lh.size :])
    log = tmp_path / "s.jsonl"
    told = ("--objective", "FFA", "--trials", 100, "--repeats", 8, "--speed", "inf")
    source = ("--pool", tmp_path / "p", "--ncsnr", tmp_path, "--dropped", 0, "--model-error", 0)
    run = brainfast("rehearse", "model", *source, *told, "--log", log)
    assert run.exit_code == 0, run.output
    tells = [event for event in read_log(log).events if event["event"] == "tell"]
    measured = np.stack([decode_betas(event["measured"]) for event in tells])
    noise = measured - pool.response([event["image"] for event in tells]).values[:, vertices]
    assert len(noise) == 100
    assert noise[:, ::2].std() < 0.05
    assert noise[:, 1::2].std() == pytest.approx(math.sqrt(0.5), abs=0.1)


def test_a_pace_is_kept_unless_told_otherwise() -> None:
    """Twenty times the scanner's, so that lateness is told."""
    run = brainfast("rehearse", "--demo", "--trials", "2", "--interval-s", "0.5")
    assert re.search(r"\d % late", run.stdout)


def test_json_is_the_same_run(tmp_path: Path) -> None:
    first, again = (json.loads(brainfast(*DEMO, "--json").stdout) for _ in range(2))
    for run in (first, again):
        run.pop("stages_ms")
        run.pop("late_share")
    assert first == again
    assert first["trials"] == 8


def test_a_wrong_speed_is_told_before_a_log_is_begun(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    assert "speed" in refusal(*DEMO, "--speed", "0", "--log", log)
    assert not log.exists()


def test_a_small_folder_is_told_before_a_log_is_begun(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    log = tmp_path / "s.jsonl"
    line = refusal("rehearse", "model", "--images", tmp_path, "--log", log)
    assert "trials: expected at most 1, of 1 candidates, got 100" in line
    assert not log.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rehearse",), "MODEL and --images, MODEL and --pool, or --demo, got none of them"),
        ((*DEMO, "--images", "x"), "or --demo, got --images and --demo"),
        (("rehearse", "--pool", "x"), "or --demo, got --pool"),
        (("rehearse", "m", "--pool", "x", "--images", "y"), "MODEL and --images and --pool"),
        ((*DEMO, "--candidates", "7"), "at most 7, of 7 candidates"),
        ((*DEMO, "--balance"), "several categories"),
        (("rehearse", "m", "--demo", "--images", "x"), "got MODEL and --images and --demo"),
        (("rehearse", "--demo", "--trials", "2001"), "at most 2000, of 2000 candidates"),
        ((*DEMO, "--objective", "FFA - XX"), "V1v"),
        ((*DEMO, "--objective", "FFA -"), "objective"),
        ((*DEMO, "--tr-s", "0"), "schedule: tr_s: expected 0.01 to 20, got 0.0"),
        ((*DEMO, "--interval-s", "inf"), "schedule: interval_s"),
        ((*DEMO, "--candidates", "8", "--min-distance", "9"), "one that may be shown, got all 8"),
        ((*DEMO, "--subject", "subj01"), "expected --subject with a MODEL, got --demo"),
        ((*DEMO, "--ncsnr", "x"), "expected --ncsnr with a MODEL, got --demo"),
        ((*DEMO, "--precision", "bf16x3"), "expected --precision with a MODEL, got --demo"),
        ((*DEMO, "--trunk-precision", "bf16"), "--trunk-precision with a MODEL, got --demo"),
        ((*DEMO, "--out", "z.tiff"), "z.tiff: expected a name that ends in .png, .pdf, .svg"),
        ((*DEMO, "--speed", "0"), "speed"),
        (("replay", "nothing.jsonl"), "nothing there"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    line = refusal(*arguments)
    assert message in line
    assert "\n" not in line


def test_replay_tells_a_torn_line_and_a_difference(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        play(running)
    data = log.read_bytes()
    log.write_bytes(data[:-10])
    found = json.loads(brainfast("replay", log, "--json").stdout)
    assert found["torn_bytes"] == len(data.splitlines()[-1]) + 1 - 10
    assert found["difference"] is None
    log.write_bytes(data.replace(b'"ties":1', b'"ties":2', 1))
    assert "line 2: expected the line as it was written" in refusal("replay", log)


def test_a_difference_is_one_line_that_tells_what_changed_since(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        play(running)

    def change(events: list[dict[str, Any]]) -> None:
        events[2]["ties"] = 9
        events[0]["versions"]["numpy"] = "0.1"

    other = edited(log, tmp_path / "o.jsonl", change)
    line = refusal("replay", other)
    assert "line 3: expected ties 9, as logged, got 1; numpy 0.1 then" in line
    answer = brainfast("replay", other, "--json")
    assert json.loads(answer.stdout)["difference"]["line"] == 3
    assert answer.exit_code != 0


def test_replay_checks_the_pool(make_engine: Any, candidates: Path, tmp_path: Path) -> None:
    pool = Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "p")
    log = tmp_path / "s.jsonl"
    with Session(pool, "FFA", log=log) as running:
        running.next()
    assert "1 choices" in brainfast("replay", log, "--pool", tmp_path / "p").stdout
    with session(log=tmp_path / "t.jsonl"):
        pass
    assert "of this model" in refusal("replay", tmp_path / "t.jsonl", "--pool", tmp_path / "p")
