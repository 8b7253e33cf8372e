"""What benchmarks/serve.py makes of answers, logs and results; and all of it, with a tiny model."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import serve
import serve_faults
import serve_table
from brainfast.loop import Choice
from loop_world import betas, session
from serve_faults import audit, check
from serve_load import Answers, Ask
from served_model import pictures


class RefusedError(Exception):
    code = "busy"


class Session:
    """Gives choices at once; refuses every fourth."""

    name = "run"

    def __init__(self) -> None:
        self.asked, self.told = 0, []

    async def next(self) -> SimpleNamespace:
        self.asked += 1
        await asyncio.sleep(0)
        if self.asked % 4 == 0:
            raise RefusedError
        return SimpleNamespace(trial=self.asked, image=f"{self.asked}.png", late=self.asked == 3)

    async def tell(self, choice, measured) -> None:
        self.told.append(choice.trial)


def choices(trials: int, **options) -> tuple[Answers, Session]:
    answers, own = Answers(), Session()
    ask = Ask(SimpleNamespace(), answers, **options)

    async def run():
        going = asyncio.ensure_future(ask.choose(own, 5))
        while own.asked < trials:
            await asyncio.sleep(0)
        ask.stop()
        await going

    asyncio.run(run())
    return answers, own


@pytest.mark.parametrize("pace_s", [None, 1e-3])
def test_a_client_tells_what_it_got_and_counts_what_was_refused(pace_s):
    answers, own = choices(9, pace_s=pace_s)
    kept = [trial for trial in range(1, own.asked + 1) if trial % 4]
    assert [trial for _, trial, _ in answers.received] == kept
    assert own.told == kept[: len(own.told)]
    assert len(own.told) >= len(kept) - 1
    assert answers.row("next")["answers"] == len(kept)
    assert answers.row("next")["refused"] == {"busy": own.asked // 4}
    assert answers.late == 1


def test_quantiles_are_those_of_the_seconds_and_not_told_of_too_few():
    answers = Answers()
    answers.seconds["next"] = list(np.arange(1, 102) / 1e3)
    row = answers.row("next")
    assert (row["p50_ms"], row["p99_ms"], row["p999_ms"], row["max_ms"]) == (51, 100, None, 101)
    assert answers.row("tell") == dict.fromkeys(("p50_ms", "p99_ms", "p999_ms", "max_ms")) | {
        "answers": 0,
        "refused": {},
    }


def play(logs: Path) -> list[Choice]:
    with session(log=logs / "run-1.jsonl") as running:
        shown = []
        for _ in range(3):
            shown.append(running.next())
            running.tell(shown[-1], betas(shown[-1]))
            running.wait()
    return shown


def test_the_audit_finds_choices_that_no_log_has(tmp_path):
    received = [("run-1", choice.trial, choice.image) for choice in play(tmp_path)]
    whole = {"logs": 1, "choices_logged": 3, "logs_that_replay_otherwise": 0}
    expected = whole | {"choices_received": 3, "received_but_not_logged": 0}
    assert audit(tmp_path, received) == expected
    check(expected)
    lost = [("run-2", *received[0][1:]), ("run-1", 9, received[0][2]), ("run-1", 0, "other")]
    found = audit(tmp_path, received + lost)
    assert found["received_but_not_logged"] == 3
    with pytest.raises(RuntimeError, match="no received but not logged, got 3"):
        check(found)


def test_a_log_that_replays_otherwise_is_an_error_after_the_result_is_written(
    tmp_path, monkeypatch
):
    found = {"audit": {"received_but_not_logged": 0, "logs_that_replay_otherwise": 1}}
    monkeypatch.setattr(serve, "measure", lambda *_: found)
    with pytest.raises(RuntimeError, match="no logs that replay otherwise, got 1"):
        serve.main(["--out", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text()) == found


def row(operation: str, **more):
    times = {"p50_ms": 1.25, "p99_ms": 12.0, "p999_ms": None, "max_ms": 150.0}
    about = {"operation": operation, "clients": 1, "pace_s": 0.75, "beside": "", "answers": 800}
    return about | times | {"refused": {"busy": 2}} | more


def result() -> dict:
    predicts = row("predict", pace_s=None)
    memory = {"start": 900, "middle": 1000, "end": 1001, "most": 1002}
    return {
        "model": {
            "V": 37984,
            "trunk": "vit",
            "px": 224,
            "candidates": 10000,
            "runtime": "compile",
            "trunk_precision": "bf16",
        },
        "tr_s": 0.75,
        "load": [predicts, row("predict", p99_ms=None), row("next", late=1, p99_ms=9.0)],
        "soak": {
            "seconds": 600,
            "rows": [row("next", late=0), predicts],
            "rss_mib": memory | {"growth_per_hour_in_second_half": 0.5},
        },
        "faults": {
            "client dies": {"given": 3, "choices": 4, "outstanding": 4},
            "queue full": {
                "predict": predicts,
                "next": row("next"),
                "asked": 200,
                "waiting": 16,
            },
            "trunk stalls": {
                "predict": predicts,
                "next": row("next"),
                "answered_again_after_s": 0.1,
            },
            "server killed": {"next": row("next"), "tell": row("tell", max_ms=9000.0)},
        },
        "audit": {
            "logs": 9,
            "choices_logged": 30,
            "choices_received": 30,
            "received_but_not_logged": 0,
            "logs_that_replay_otherwise": 0,
        },
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "isa": "avx512",
            "busy_elsewhere": 0.0,
            "versions": {"torch": "2"},
        },
    }


def test_the_page_says_which_budget_was_missed(tmp_path, monkeypatch):
    page, path = tmp_path / "serve.md", tmp_path / "serve.json"
    path.write_text(json.dumps(result()))
    page.write_text("before\n<!-- serve: start -->\nformer\n<!-- serve: end -->\nafter\n")
    monkeypatch.setattr(serve_table, "RESULT", path)
    monkeypatch.setattr(serve_table, "PAGE", page)
    serve_table.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "former" not in text
    assert "image of a session | 1 | every 0.75 s | 800 | 1.25 | 9 | - | 150 | 1 | 2 |" in text
    budgets = text.splitlines()[2:4]
    assert "p99 9 ms (within the budget of 10 ms) for one client alone" in budgets[0]
    assert "p99 12 ms (**beyond** the budget of 10 ms) over 600 s" in budgets[0]
    assert "too few answers (800) for a p99 for one client alone" in budgets[1]
    assert "p99 12 ms (within the budget of 200 ms) over 600 s" in budgets[1]
    assert "800 choices, the longest wait for an answer 9,000 ms" in text
    assert "0 of them missing" in text


def test_pictures_differ_and_are_smooth():
    images = pictures(3, 40)
    assert images.shape == (3, 40, 40, 3)
    assert len({image.tobytes() for image in images}) == 3
    steps = np.abs(np.diff(images.astype(int), axis=1))
    assert steps.mean() < images.std() / 4


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        serve.main(["--only", "loud", "--out", str(tmp_path / "x.json")])
    assert "faults, load, soak" in capsys.readouterr().err


def quick(folder: Path, parts: str) -> dict:
    path = folder / "serve.json"
    serve.main(["--quick", "--only", parts, "--out", str(path)])
    found = json.loads(path.read_text())
    assert found["audit"]["choices_received"] > 0
    assert found["exit_codes_of_drain"] == [0]
    return found


def test_every_fault_comes_about(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_faults, "PACE_S", 0.1)
    found = quick(tmp_path, "faults")["faults"]
    assert found["client dies"] == {"given": 3, "choices": 4, "outstanding": 4}
    assert found["queue full"]["predict"]["refused"]["busy"] > 0
    assert found["trunk stalls"]["predict"]["refused"]["stalled"] > 0
    assert all(found[name]["next"]["answers"] for name in found if name != "client dies")


def test_every_kind_of_load_is_answered(tmp_path):
    found = quick(tmp_path, "load,soak")
    assert all(row["answers"] for row in found["load"] + found["soak"]["rows"])
    asked = {(row["operation"], row["clients"], row["pace_s"]) for row in found["load"]}
    operations, clients, paces = ("next", "tell", "predict"), (1, 3), (None, 0.1)
    assert asked >= set(itertools.product(operations, clients, paces))
    assert found["soak"]["rss_mib"]["most"] > 0
