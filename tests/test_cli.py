"""The commands as a user types them: answers, exit codes, and one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from nilearn.surface import load_surf_data
from PIL import Image

from brainfast import boundary, cli, demo
from brainfast.card import Card
from brainfast.errors import BrainfastError

TRUNK = ("--random-trunk", "--trunk", "vit_tiny_patch16_224")
RECIPE = ("--recipe", "demo", "--epochs", "3", "--layers", "0,4,11")
HOW = ("--coordinates", "fsaverage5", "--quiet")
V = 300


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def brainfast(*arguments: object) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = sys.argv, [signal.getsignal(number) for number in numbers]
    sys.argv = ["brainfast", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
            cli.main()
    finally:
        sys.argv = before[0]
        for number, handler in zip(numbers, before[1], strict=True):
            signal.signal(number, handler)
    return Answer(int(done.value.code or 0), out.getvalue(), err.getvalue())


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    """Run a command in a process of its own."""
    code = "from brainfast.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        **options,
    )


class Place(NamedTuple):
    root: Path
    subject: Path
    model: Path

    @property
    def image(self) -> Path:
        return self.subject / "test_split/test_images/test-0001_nsd-00060.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A simulated subject and a model of it, both small."""
    root = tmp_path_factory.mktemp("cli")
    subject = root / "subj01"
    trunk = demo.demo_trunk(pretrained=False, seed=0)
    demo.simulate(subject, trunk, n_images=60, vertices=V, progress=False)
    done = brainfast("train", subject, "--out", root / "model", *TRUNK, *RECIPE, *HOW, "--onnx")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.splitlines()[-1] == f"model: {root / 'model'}"
    return Place(root, subject, root / "model")


@pytest.fixture
def copy(place, tmp_path) -> Place:
    """The same, to be spoilt."""
    shutil.copytree(place.subject, tmp_path / "subj01")
    shutil.copytree(place.model, tmp_path / "model")
    return Place(tmp_path, tmp_path / "subj01", tmp_path / "model")


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


COMMANDS = ("demo", "train", "evaluate", "predict", "map", "bench", "doctor")


def test_help_lists_the_commands():
    for arguments in ((), ("--help",)):
        done = brainfast(*arguments)
        assert done.code == 0
        assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command):
    done = brainfast(command, "--help")
    assert done.code == 0
    assert f"brainfast {command}" in done.out


def test_train_writes_a_whole_model(place):
    card = Card.read(place.model)
    assert card.space.vertices == V
    assert card.space.subject == "subj01"
    assert card.training is not None
    assert card.training.steps == 300
    assert card.trunk.layers == (0, 4, 11)
    assert [score.split for score in card.scores] == ["heldout"]
    hidden = [path for path in files_in(place.root) if path.name.startswith(".")]
    assert hidden == []


def test_evaluate_scores_and_keeps_them(copy):
    done = brainfast("evaluate", copy.model, copy.subject, "--split", "challenge", "--json")
    found = json.loads(done.out)
    assert found["summary"]["n"] == len(list(copy.image.parent.iterdir()))
    assert found["rois"][0]["roi"] == "all"
    assert found["rois"][0]["vertices"] == V
    assert found["rois"][0]["r2"] == pytest.approx(found["summary"]["r2_mean"])
    assert {score.split for score in Card.read(copy.model).scores} == {"heldout", "challenge"}
    table = brainfast("evaluate", copy.model, copy.subject, "--quiet")
    assert table.out.split()[:3] == ["ROI", "vertices", "R2"]
    assert table.err == ""


def test_evaluate_says_why_there_is_no_normalised_score(copy):
    shutil.rmtree(copy.subject / "test_split")
    done = brainfast("evaluate", copy.model, copy.subject, "--quiet")
    assert done.code == 0
    assert "no normalised score: the folder holds no noise ceiling" in done.out


def test_predict_answers_alike_under_both_runtimes(place):
    answers = []
    for runtime in ("onnx", "torch"):
        done = brainfast("predict", place.model, place.image, "--runtime", runtime, "--json")
        assert done.err == ""
        answers.append(json.loads(done.out)[str(place.image)])
    assert answers[0].keys() == answers[1].keys() >= {"V1", "FFA", "EBA"}
    assert list(answers[0].values()) == pytest.approx(list(answers[1].values()), abs=1e-3)


def test_predict_takes_precisions(place):
    precise = ("predict", place.model, place.image, "--json", "--vertices", "V1")
    first = json.loads(brainfast(*precise).out)[str(place.image)]["V1"]
    done = brainfast(*precise, "--precision", "bf16", "--trunk-precision", "bf16")
    assert json.loads(done.out)[str(place.image)]["V1"] == pytest.approx(first, abs=0.1)


def test_predict_names_the_regions_that_were_asked_for(place):
    done = brainfast("predict", place.model, place.image.parent, "--vertices", "FFA, lh.PPA")
    lines = done.out.splitlines()
    assert len(lines) == len(list(place.image.parent.iterdir()))
    assert all("FFA " in line and "lh.PPA " in line and "ventral" not in line for line in lines)


def test_predict_writes_gifti_that_nilearn_reads(place, tmp_path):
    done = brainfast("predict", place.model, place.image, "--out", tmp_path / "maps")
    assert done.code == 0
    sides = [
        load_surf_data(tmp_path / "maps" / f"{place.image.stem}_hemi-{side}.func.gii")
        for side in "LR"
    ]
    assert all(side.shape == (163842,) for side in sides)
    assert sum(np.isfinite(side).sum() for side in sides) == V


@pytest.mark.parametrize("what", ["layer", "space", "r2"])
def test_map_draws(place, tmp_path, what):
    done = brainfast("map", place.model, "--what", what, "--out", tmp_path / "map.png")
    assert done.out.strip() == str(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_bench_and_doctor_print_json(place):
    done = brainfast(
        "bench", place.model, "--batch", "2", "--rounds", "3", "--no-listing1", "--json"
    )
    table = json.loads(done.out)
    assert table["case"]["V"] == V
    assert {row["batch"] for row in table["rows"]} == {2}
    assert "instruction_set" in json.loads(brainfast("doctor", "--json").out)["cpu"]


# The folder is a copy that each mistake may spoil first; {subject}, {model}, {image}, {root} are
# its places. Every one must be told in one line and leave no file behind.
MISTAKES = {
    "no argument": ("train", "Missing argument"),
    "unknown command": ("paint", "No such command 'paint'"),
    "unknown split": ("evaluate {model} {subject} --split all", "'--split'"),
    "negative seed": ("train {subject} --out {root}/new --seed -1", "'--seed'"),
    "no such model": ("predict {root}/none {image}", "expected a model folder with config.json"),
    "no such subject": ("train {root}/none --out {root}/new", "Algonauts subject's folder"),
    "no such image": ("predict {model} none.png", "none.png: expected an image file"),
    "no such ROI": ("predict {model} {image} --vertices FFA,XY", "a region that subj01 has"),
    "no images": ("predict {model} {root}/empty", "none in it"),
    "text as image": ("predict {model} {root}/text.png", "whole image that Pillow reads"),
    "cut image": ("predict {model} {root}/cut.png --out {root}/maps", "image file is truncated"),
    "same names": ("predict {model} {image} {image} --out {root}/maps", "2 named test-0001"),
    "out is a file": ("predict {model} {image} --out {root}/text.png", "Not a directory"),
    "no GPU runtime": (
        "predict {model} {image} --runtime onnx --trunk-precision bf16",
        "runtime onnx: expected trunk_precision fp32",
    ),
    "not a zip": ("predict {model} {image} --submission {root}/s.txt", "ends in .zip"),
    "not a challenge subject": (
        "predict {model} {image} --submission {root}/s.zip",
        "expected 19004 left and 20544 right vertices, got",
    ),
    "map before scores": ("map {model} --what r2 --split val --out {root}/m.png", "evaluate"),
    "map of no kind": ("map {model} --out {root}/map.gif", "ends in .png"),
    "model out is a file": ("train {subject} --out {root}/text.png", "a new folder, or one with"),
    "model out is taken": ("train {subject} --out {subject}", "something else of that name"),
    "model out is here": ("train {subject} --out {root}", "something else of that name"),
    "model out in a file": ("train {subject} --out {root}/text.png/new", "Not a directory"),
    "layers": ("train {subject} --out {root}/new --layers 0,x", "--layers: expected whole numbers"),
    "deep layers": ("train {subject} --out {root}/new {how} --layers 0,99", "in 0..11"),
    "trunk name": (
        "train {subject} --out {root}/new {how} --trunk vit_tiny_patch16_22",
        "did you mean vit_tiny_patch16_224",
    ),
    "recipe": ("train {subject} --out {root}/new {how} --recipe cake", "expected demo or paper"),
    "model kind": ("train {subject} --out {root}/new --model cake {how}", "model: expected"),
    "both weights": (
        "train {subject} --out {root}/new --weights {model}/trunk.safetensors {how}",
        "expected no --random-trunk",
    ),
    "coordinates of another": (
        "train {subject} --out {root}/new --coordinates {root}/other.npy",
        "expected numbers [300,3]",
    ),
    "cut coordinates": (
        "train {subject} --out {root}/new --coordinates {root}/cut.npy",
        "expected a .npy file of [300,3]",
    ),
    "ncsnr": ("evaluate {model} {subject} --ncsnr {root}/ncsnr", "ncsnr for 163842 or"),
    "another subject": ("evaluate {model} {root}/subj02", "vertices of subj01"),
    "batch": ("bench --batch 1,x", "--batch: expected whole numbers"),
    "batch of none": ("bench --batch 0 --vertices 9 --layers 1 --dim 4", "batch: expected 1"),
}


@pytest.fixture(scope="module")
def spoilt(place, tmp_path_factory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("mistakes")
    (root / "empty").mkdir()
    (root / "ncsnr").mkdir()
    (root / "text.png").write_text("not an image")
    (root / "cut.png").write_bytes(place.image.read_bytes()[:3000])
    np.save(root / "other.npy", np.zeros((V + 1, 3), np.float32))
    (root / "cut.npy").write_bytes((root / "other.npy").read_bytes()[:50])
    for side in ("lh", "rh"):
        np.save(root / "ncsnr" / f"{side}.ncsnr.npy", np.ones(7, np.float32))
    shutil.copytree(place.subject, root / "subj02")
    how = " ".join((*TRUNK, *RECIPE, *HOW))
    return {
        "root": root,
        "subject": place.subject,
        "model": place.model,
        "image": place.image,
        "how": how,
    }


def assert_one_line(done: Answer, text: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("brainfast: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert text in done.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, place, spoilt):
    line, text = MISTAKES[mistake]
    before = files_in(place.root) | files_in(spoilt["root"])
    assert_one_line(brainfast(*line.format(**spoilt).split()), text)
    assert files_in(place.root) | files_in(spoilt["root"]) == before


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
