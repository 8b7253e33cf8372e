"""run_session.m in GNU Octave, on a stand-in for Psychtoolbox, against a server in a process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.loop import read_log
from brainfast.loop.log import decode_betas
from example_octave import NEEDS_OCTAVE, Octave, V, octave_way
from example_world import SESSIONS, Server, grey, until

pytest.importorskip("fastapi", reason="brainfast[serve]")
pytest.importorskip("zmq", reason="brainfast[serve]")
pytestmark = NEEDS_OCTAVE
THROUGH_CURL = pytest.mark.parametrize("octave", ["curl"], indirect=True)


@THROUGH_CURL
def test_an_experiment_outlives_its_server(
    octave: Octave, mortal: Server, pictures: Path, fallback: Path, tmp_path: Path
) -> None:
    record, flips, stop = (tmp_path / name for name in ("run.csv", "flips.csv", "stop"))
    betas = written_betas(tmp_path / "betas")
    experiment = octave.start(
        f"""
        run_session('{mortal.url}', 'run', '{pictures}', 'token', '{mortal.token}', ...
                    'fallback', '{fallback}', 'trials', 1000, 'soa_s', 1, 'image_s', 0.1, ...
                    'ask_s', 0.3);
        disp('done')
        """,
        BRAINFAST_TEST_FLIPS=str(flips),
        BRAINFAST_TEST_STOP=str(stop),
    )
    try:
        until(lambda: len(chosen(record)) >= 3 or experiment.poll() is not None, 120)
        mortal.kill()
        until(lambda: -1 in shown(record) or experiment.poll() is not None, 120)
        before = len(chosen(record))
        mortal.start()
        until(lambda: len(chosen(record)) >= before + 2 or experiment.poll() is not None, 120)
    finally:
        stop.touch()
        out, err = experiment.communicate(timeout=300)
    assert "done" in out, err
    assert chosen(record) == list(range(len(chosen(record))))

    events = read_log(mortal.logs / "run.jsonl").events
    images = {event["trial"]: event["image"] for event in events if event["event"] == "choice"}
    assert all(images[trial] == image for trial, image in rows(record) if trial >= 0)
    levels = [int(line.split(",")[0]) for line in flips.read_text().splitlines()]
    on_screen = [level for level in levels if level >= 0]
    assert on_screen == [grey(image) for _, image in rows(record)]
    answers = {e["trial"]: e for e in events if e["event"] in ("tell", "skip")}
    assert set(answers) == set(chosen(record))
    for trial, event in answers.items():
        assert event["event"] == ("skip" if betas[trial] is None else "tell")
        if betas[trial] is not None:
            np.testing.assert_array_equal(decode_betas(event["measured"]), betas[trial])


def test_an_experiment_that_died_goes_on(
    octave: Octave, server: Server, pictures: Path, fallback: Path, tmp_path: Path, request: Any
) -> None:
    name = f"resumed-{octave_way(request)}"
    written_betas(tmp_path / "betas")
    script = f"""
        run_session('{server.url}', '{name}', '{pictures}', 'token', '{server.token}', ...
                    'fallback', '{fallback}', 'trials', 2, 'soa_s', 2, 'image_s', 0.1, ...
                    'resume', RESUME);
        disp('done')
    """
    flips = str(tmp_path / "flips.csv")
    record = tmp_path / f"{name}.csv"
    for resume in ("false", "true"):
        experiment = octave.start(script.replace("RESUME", resume), BRAINFAST_TEST_FLIPS=flips)
        out, err = experiment.communicate(timeout=300)
        assert "done" in out, err
        assert ("its last line was torn and is dropped" in err) == (resume == "true")
        with record.open("a") as file:
            file.write("7,07.p")  # as a power cut tears it
    assert chosen(record) == list(range(len(chosen(record))))
    assert len(rows(record)) == 4
    events = read_log(server.logs / f"{name}.jsonl").events
    told = [event["trial"] for event in events if event["event"] in ("tell", "skip")]
    assert sorted(told) == chosen(record)
    again = octave.start(script.replace("RESUME", "false"), BRAINFAST_TEST_FLIPS=flips)
    _, err = again.communicate(timeout=300)
    assert "choose another session, or say resume" in err


def test_a_broken_picture_is_skipped(
    octave: Octave, server: Server, broken: Path, fallback: Path, tmp_path: Path, request: Any
) -> None:
    name = f"broken-{octave_way(request)}"
    written_betas(tmp_path / "betas")
    experiment = octave.start(
        f"""
        run_session('{server.url}', '{name}', '{broken}', 'token', '{server.token}', ...
                    'fallback', '{fallback}', 'trials', 4, 'soa_s', 2, 'image_s', 0.1);
        disp('done')
        """,
        BRAINFAST_TEST_FLIPS=str(tmp_path / "flips.csv"),
    )
    out, err = experiment.communicate(timeout=300)
    assert "done" in out, err
    record = tmp_path / f"{name}.csv"
    events = read_log(server.logs / f"{name}.jsonl").events
    images = {event["trial"]: event["image"] for event in events if event["event"] == "choice"}
    assert len(rows(record)) == 4
    whole = [trial for trial in images if grey(images[trial]) % 2]
    assert chosen(record) == whole[: len(chosen(record))]
    skipped = {event["trial"] for event in events if event["event"] == "skip"}
    last = max(images)  # may have come too late
    assert {trial for trial in images if not grey(images[trial]) % 2} - {last} <= skipped


@THROUGH_CURL
def test_more_runs_than_a_server_keeps_sessions(
    octave: Octave, server: Server, pictures: Path, fallback: Path, tmp_path: Path
) -> None:
    written_betas(tmp_path / "betas")
    experiment = octave.start(
        f"""
        for number = 1:{SESSIONS + 1}
            run_session('{server.url}', sprintf('matlab-%d', number), '{pictures}', 'token', ...
                        '{server.token}', 'fallback', '{fallback}', 'trials', 1, 'soa_s', 1.5, ...
                        'image_s', 0.1);
        end
        disp('done')
        """,
        BRAINFAST_TEST_FLIPS=str(tmp_path / "flips.csv"),
    )
    out, err = experiment.communicate(timeout=300)
    assert "done" in out, err
    assert not [name for name in server.sessions() if name.startswith("matlab-")]
    records = list(tmp_path.glob("matlab-*.csv"))
    assert [len(rows(record)) for record in records] == [1] * (SESSIONS + 1)


@THROUGH_CURL
def test_a_run_that_fails_closes_its_session(
    octave: Octave, server: Server, pictures: Path, fallback: Path, tmp_path: Path
) -> None:
    calls = [
        f"try, run_session('{server.url}', 'fails', '{where}', 'token', '{server.token}', "
        f"'fallback', '{image}', 'soa_s', {seconds}), catch e, disp(e.message), end"
        for where, image, seconds in (
            ("no-such-folder", fallback, "1"),
            (pictures, "no-such-file", "1"),
            (pictures, fallback, "{}"),
        )
    ]
    script = "\n".join([*calls[:2], f"assert(~exist('{server.logs}/fails.jsonl'));", calls[2]])
    flips = str(tmp_path / "flips.csv")
    out, err = octave.start(script, BRAINFAST_TEST_FLIPS=flips).communicate(timeout=300)
    lines = out.splitlines()
    assert len(lines) == 3, out + err
    assert "no-such-folder" in lines[0]
    assert "no-such-file" in lines[1]
    assert (server.logs / "fails.jsonl").exists()
    assert "fails" not in server.sessions()


def written_betas(folder: Path) -> dict[int, np.ndarray | None]:
    """Betas of a hundred trials in files, as a GLM writes them; every third is given up."""
    folder.mkdir()
    betas: dict[int, np.ndarray | None] = {}
    for trial in range(100):
        values = np.random.default_rng(trial).standard_normal(V).astype(np.float32)
        values[5] = np.nan
        betas[trial] = None if trial % 3 == 2 else values
        text = "" if betas[trial] is None else "\n".join(map(str, values))
        (folder / f"{trial:04d}.txt").write_text(text)
    return betas


def rows(record: Path) -> list[tuple[int, str]]:
    """Trial and image of every whole line; -1 is the fallback."""
    if not record.exists():
        return []
    lines = record.read_text().splitlines(keepends=True)
    whole = csv.reader(line for line in lines if line.endswith("\n"))
    return [(int(trial), image) for trial, image, _ in whole]


def shown(record: Path) -> list[int]:
    return [trial for trial, _ in rows(record)]


def chosen(record: Path) -> list[int]:
    return [trial for trial in shown(record) if trial >= 0]
