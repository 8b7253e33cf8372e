"""How runs of the PsychoPy example end, are gone on with, and are refused before they begin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from brainfast.errors import BrainfastError
from example_screen import StubScreen, check_shown
from example_world import SESSIONS, Server

pytest.importorskip("zmq", reason="brainfast[serve]")
pytest.importorskip("msgspec", reason="brainfast[serve]")


def test_more_runs_than_a_server_keeps_sessions(make_run: Any, server: Server) -> None:
    names = [f"many-{number}" for number in range(SESSIONS + 1)]
    for name in names:
        run = make_run(server, name, trials=1, delay=0.0)
        run()
        assert name not in server.sessions()
        assert len(run.rows) == 1
        assert sorted(run.of("tell")) == run.trials


def test_a_run_whose_session_cannot_be_closed_ends_well(
    make_run: Any,
    mortal: Server,
    example: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(example, "CLOSE_S", 0.5)
    run = make_run(mortal, "lost", trials=1)

    def happen(screen: StubScreen) -> None:
        if screen.levels:
            mortal.kill()
            screen.escape = True

    run(happen)
    assert len(run.rows) == 1
    assert "session lost may still be open at the server: " in capsys.readouterr().err


def test_a_line_that_was_torn_is_dropped(
    make_run: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(server, "torn", trials=3)
    levels = run().levels
    record, before = Path("torn.csv"), run.rows
    assert run.trials
    record.write_bytes(record.read_bytes().rpartition(b",")[0])
    resumed = run(resume=True, trials=2).levels
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("psychopy_session: torn.csv: its last line was torn and is dropped")
    assert run.rows[:2] == before[:2]
    assert len(run.rows) == 4
    assert run.trials == list(range(len(run.trials)))
    assert run.rows[2][0] in (None, len([trial for trial, _ in before[:2] if trial is not None]))
    check_shown(run, levels[:2] + resumed)
    assert sorted(run.of("tell")) == run.trials


@pytest.mark.parametrize("line", ["1,image-1", "one,i.png,2.0", "1,i.png,soon", ""])
def test_a_line_that_is_no_line_is_refused(make_run: Any, server: Server, line: str) -> None:
    run = make_run(server, "odd")
    Path("odd.csv").write_text(f"0,00.png,1.0\r\n{line}\r\n1,01.png,2.0\r\n")
    with pytest.raises(BrainfastError, match=r"odd\.csv, line 2: expected trial,image,onset"):
        run(resume=True)


@pytest.mark.parametrize("option", ["fallback", "token_file", "pictures"])
def test_what_a_user_names_must_be_there(make_run: Any, server: Server, option: str) -> None:
    run = make_run(server, "none", **{option: Path("no-such-file")})
    with pytest.raises(BrainfastError, match=rf"^--{option.replace('_', '-')}: .*no-such-file"):
        run()
    assert not Path("none.csv").exists()
    assert not (server.logs / "none.jsonl").exists()


def test_a_fallback_that_is_no_picture(make_run: Any, server: Server) -> None:
    Path("text.png").write_text("no picture")
    with pytest.raises(BrainfastError, match=r"^--fallback: expected a picture.*text\.png"):
        make_run(server, "none", fallback=Path("text.png"))()


def test_markers_without_their_library(
    make_run: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(BrainfastError, match="pip install pylsl"):
        make_run(server, "none", lsl=True)()
    assert not (server.logs / "none.jsonl").exists()
