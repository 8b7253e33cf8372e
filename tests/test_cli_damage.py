"""The command line with damaged files, and runs that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from brainfast import boundary, cli
from brainfast.card import Card
from brainfast.errors import BrainfastError
from command_line import HOW, RECIPE, TRUNK, Answer, assert_one_line, brainfast, files_in, start


def cut(path: Path, size: int = 60) -> None:
    path.write_bytes(path.read_bytes()[:size])


def hostile(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


BROKEN_MODELS = {
    "cut config": lambda m: cut(m / "config.json"),
    "unknown key": lambda m: hostile(m / "config.json", code="import os"),
    "newer format": lambda m: hostile(m / "config.json", format_version=2),
    "empty grid": lambda m: hostile(
        m / "config.json", head={"grid": [0, 8], "samples": 1, "pool_space": False, "options": {}}
    ),
    "cut head": lambda m: cut(m / "folded.safetensors"),
    "cut vertices": lambda m: cut(m / "vertices.safetensors"),
    "cut trunk": lambda m: cut(m / "trunk.safetensors", 9999),
    "no golden": lambda m: (m / "golden.safetensors").unlink(),
}


@pytest.mark.parametrize("kind", BROKEN_MODELS)
def test_a_broken_model_is_one_line(kind, copy, place):
    BROKEN_MODELS[kind](copy.model)
    done = brainfast("predict", copy.model, place.image, "--runtime", "torch")
    assert_one_line(done, str(copy.model))


def test_a_hostile_size_is_refused_before_it_takes_memory(copy):
    config = json.loads((copy.model / "config.json").read_text())
    config["head"]["options"]["dim"] = 10**12
    (copy.model / "config.json").write_text(json.dumps(config))
    done = brainfast("evaluate", copy.model, copy.subject)
    assert_one_line(done, "expected the parameters of the factortopy head")


FMRI = Path("training_split/training_fmri/lh_training_fmri.npy")
BROKEN_SUBJECTS = {
    "cut responses": (lambda s: cut(s / FMRI, 5000), "a file that cannot be read"),
    "no responses": (lambda s: (s / FMRI).unlink(), "no such file"),
    "short responses": (lambda s: np.save(s / FMRI, np.load(s / FMRI)[:-1]), "as many rows"),
    "pickled responses": (lambda s: np.save(s / FMRI, np.array([{}])), "cannot be read"),
    "NaN": (lambda s: np.save(s / FMRI, np.load(s / FMRI) * np.nan), "finite responses"),
    "no masks": (lambda s: shutil.rmtree(s / "roi_masks"), "all-vertices"),
    "no organiser's files": (lambda s: shutil.rmtree(s / "test_split/test_fmri"), "organisers"),
    "no test images": (lambda s: shutil.rmtree(s / "test_split"), "challenge split"),
}


@pytest.mark.parametrize("kind", BROKEN_SUBJECTS)
def test_a_broken_subject_is_one_line(kind, copy):
    spoil, text = BROKEN_SUBJECTS[kind]
    spoil(copy.subject)
    before = files_in(copy.root)
    done = brainfast("evaluate", copy.model, copy.subject, "--split", "challenge", "--quiet")
    assert_one_line(done, text)
    assert files_in(copy.root) == before


def test_another_split_is_refused(copy):
    (copy.subject / "groups.csv").unlink()
    assert_one_line(brainfast("evaluate", copy.model, copy.subject), "the split that the model")


def test_a_full_disk_is_one_line_and_leaves_nothing(place, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for command in (
        ("predict", place.model, place.image, "--out", tmp_path / "maps"),
        ("map", place.model, "--what", "scale", "--out", tmp_path / "map.png"),
        ("train", place.subject, "--out", tmp_path / "new", *TRUNK, *RECIPE, *HOW),
    ):
        assert_one_line(brainfast(*command), "space")
    assert {path.name for path in files_in(tmp_path)} <= {"tokens.lock"}


def test_a_cache_of_another_run_is_refused(place, tmp_path):
    work = place.root / "model.work"
    done = brainfast(
        *("train", place.subject, "--out", tmp_path / "new", "--work", work, "--seed", 1),
        *(*TRUNK, *RECIPE, *HOW),
    )
    assert_one_line(done, "a cache of other trunk weights")
    assert not (tmp_path / "new").exists()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_training_goes_on_to_the_same_model(place, tmp_path):
    out = tmp_path / "model"
    command = ("train", place.subject, "--out", out, *TRUNK, *RECIPE, *HOW)
    with start(*command, stderr=subprocess.PIPE) as process:
        wait_for(tmp_path / "model.work" / "checkpoint.safetensors", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (tmp_path / "model.work" / ".checkpoint.safetensors.0.part").write_text("half")
    done = brainfast(*command)
    assert done.code == 0, done.err
    assert Card.read(out).model_hash == Card.read(place.model).model_hash
    assert not [path for path in files_in(tmp_path) if path.suffix == ".part"]


def test_a_stopped_training_says_how_to_go_on(place, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(place.root / "model.work" / "tokens", work / "tokens")
    arguments = ("--out", tmp_path / "new", "--work", work, "--layers", "0,4,11", *TRUNK, *HOW)
    recipe = ("--recipe", "demo", "--epochs", "9999")
    with start("train", place.subject, *arguments, *recipe, stderr=subprocess.PIPE) as process:
        wait_for(work / "training.lock", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == (
        f"brainfast: stopped by SIGINT; what is done is in {work},"
        " and the same command goes on from there\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


def test_a_reader_that_leaves_is_no_error(place):
    read, write = os.pipe()
    os.close(read)
    with start("--help", stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (1, boundary.BROKEN_PIPE)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BrainfastError("a", expected="b", got="c"), "a: expected b, got c"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: expected a file or folder"),
        (MemoryError("8 GiB"), "memory: expected enough of it, got 8 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory:\n trace"), "memory: expected"),
        (RuntimeError("shapes differ"), None),
        (KeyError("defect"), None),
        (OSError("not from the system"), None),
    ],
)
def test_only_what_the_user_can_mend_becomes_a_line(error, text):
    found = boundary.explain(error)
    if text is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(text)
        assert "\n" not in found


def test_a_batch_system_that_ends_the_job_is_told_apart(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert brainfast("doctor") == Answer(143, "", "brainfast: stopped by SIGTERM\n")


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(cli, "app", broken)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError, match="defect"):
        cli.main()
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)
