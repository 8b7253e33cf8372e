"""`brainfast pool` and `brainfast select`, over an engine that needs no trunk."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from brainfast import cli, cli_pool
from brainfast.errors import BrainfastError
from brainfast.pool import Pool
from brainfast.pool_file import DATA_FILE
from command_line import assert_one_line, brainfast


@pytest.fixture
def command(monkeypatch, make_engine):
    """Runs a command; the model is the toy engine."""
    monkeypatch.setattr(cli_pool, "_engine", lambda *_: make_engine("blobgpt"))

    def run(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def pool(command, candidates, tmp_path):
    done = command("pool", "build", tmp_path, candidates, "--out", tmp_path / "pool", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.output == f"pool: {tmp_path / 'pool'}, 13 candidates\n"
    return tmp_path / "pool"


def test_build_tells_the_size_before_it_starts(command, candidates, tmp_path):
    done = command(
        *("pool", "build", tmp_path, candidates, "--out", tmp_path / "p", "--dtype", "int8"),
        *("--project", "FFA", "--project", "PPA"),
    )
    assert "13 candidates, 2 objectives in int8, 0.0 MB" in done.output


def test_info(command, pool, monkeypatch):
    assert "13 candidates, 7 features in bf16" in command("pool", "info", pool).output
    monkeypatch.chdir(pool)
    assert "13 candidates, 7 features in bf16" in command("pool", "info", ".").output
    about = json.loads(command("pool", "info", pool, "--json").output)
    assert (about["candidates"], about["categories"], about["key"]["trunk"]) == (13, 3, "toy")


def test_select(command, pool, tmp_path):
    wanted = ("--objective", "FFA - PPA", "--objective", "V1v", "-k", 3)
    best = json.loads(command("select", pool, tmp_path, *wanted, "--json").output)
    assert list(best) == ["FFA - PPA", "V1v"]
    assert [len(choices) for choices in best.values()] == [3, 3]
    first, second, _ = (choice["name"] for choice in best["V1v"])
    shown = tmp_path / "shown.txt"
    shown.write_text(f"{second}\n")
    done = command(
        *("select", pool, tmp_path, "--objective", "V1v", "-k", 2),
        *("--exclude", first, "--exclude-file", shown, "--per-category", 1),
    )
    lines = done.output.splitlines()
    assert lines[0] == "V1v"
    assert len(lines) == 3
    assert first not in done.output
    assert second not in done.output


def test_remove_add_and_verify(command, pool, candidates, tmp_path):
    name = json.loads(
        command("select", pool, tmp_path, "--objective", "V1v", "-k", 1, "--json").output
    )["V1v"][0]["name"]
    assert command("pool", "remove", pool, name).output.endswith("12 candidates, 1 removed\n")
    assert command("pool", "verify", pool).output == "sound\n"
    assert command("pool", "verify", pool, candidates).stdout == "sound\n"
    again = command("pool", "add", pool, tmp_path, candidates / name, "--quiet")
    assert again.output.endswith("13 candidates\n")
    data = bytearray((pool / DATA_FILE).read_bytes())
    data[-1] ^= 1
    (pool / DATA_FILE).write_bytes(data)
    done = command("pool", "verify", pool, "--json")
    assert done.exit_code == 1
    problem = "pool.safetensors: bytes that were not written by the build"
    assert json.loads(done.stdout) == {"sound": False, "problems": [problem]}


def test_mistakes_are_told(command, pool, tmp_path):
    for arguments, words in (
        (("select", pool, tmp_path, "--objective", "FFA -"), "at character 6"),
        (("pool", "info", tmp_path / "none"), "a pool, got no pool there"),
        (
            ("select", pool, tmp_path, "--objective", "FFA", "--exclude-file", tmp_path / "none"),
            "a text file",
        ),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, BrainfastError)
        assert words in str(done.exception)


def test_verify_compares_with_the_source(command, pool, candidates):
    names = sorted(path.relative_to(candidates).as_posix() for path in candidates.rglob("*.png"))
    (candidates / names[0]).rename(candidates / "new.png")
    (candidates / names[1]).write_bytes((candidates / names[2]).read_bytes())
    done = command("pool", "verify", pool, candidates, "--quiet")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"{names[0]}: not in the source",
        f"{names[1]}: other bytes",
        "new.png: not in the pool",
    ]


@pytest.fixture
def broken(candidates):
    """An image that is cut off, the tenth of thirteen."""
    path = sorted(candidates.rglob("*.png"))[9]
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    return path, whole


def test_a_broken_image_stops_the_build_until_it_is_replaced(command, candidates, broken, tmp_path):
    path, whole = broken
    build = ("pool", "build", tmp_path, candidates, "--out", tmp_path / "p", "--batch-size", 4)
    done = command(*build)
    assert isinstance(done.exception, BrainfastError)
    assert str(done.exception).startswith(f"{path}: expected a whole image that Pillow reads")
    assert "replace it, or leave broken ones out with skip_unreadable" in str(done.exception)
    told = command("pool", "info", tmp_path / "p")
    assert told.exit_code == 0
    assert "13 candidates, 7 features in bf16, 0.0 MB, 0 removed, 8 computed so far" in told.output
    path.write_bytes(whole)
    again = command(*build)
    assert "8/13" in again.stderr, "it goes on"
    assert again.stdout.endswith(f"pool: {tmp_path / 'p'}, 13 candidates\n")
    assert command("pool", "verify", tmp_path / "p", candidates).stdout == "sound\n"


def test_a_broken_image_may_be_left_out(command, candidates, broken, tmp_path):
    pool, name = tmp_path / "p", broken[0].relative_to(candidates).as_posix()
    build = ("pool", "build", tmp_path, candidates, "--out", pool, "--batch-size", 4)
    command(*build)
    done = command(*build, "--skip-unreadable")
    assert f"{name}: cannot be read, left out" in done.stderr
    assert done.stdout.endswith(f"pool: {pool}, 12 candidates, 1 removed\n")
    best = command("select", pool, tmp_path, "--objective", "FFA", "-k", 12, "--json")
    rest = {path.relative_to(candidates).as_posix() for path in candidates.rglob("*.png")} - {name}
    assert {choice["name"] for choice in json.loads(best.stdout)["FFA"]} == rest
    assert command("pool", "verify", pool, candidates).stdout == "sound\n"
    more = tmp_path / "more"
    more.mkdir()
    (more / "broken.png").write_bytes(broken[0].read_bytes())
    (more / "whole.png").write_bytes(broken[1])
    assert isinstance(command("pool", "add", pool, tmp_path, more).exception, BrainfastError)
    assert len(Pool.open(pool)) == 12
    grown = command("pool", "add", pool, tmp_path, more, "--skip-unreadable", "--quiet")
    assert grown.stdout == f"pool: {pool}, 13 candidates, 1 removed\n"


@pytest.mark.parametrize("project", [(), ("--project", "FFA")])
def test_a_build_of_nothing_that_can_be_read_leaves_no_pool(command, candidates, tmp_path, project):
    images = {path: path.read_bytes() for path in candidates.rglob("*.png")}
    for path in images:
        path.write_bytes(b"no image")
    build = ("pool", "build", tmp_path, candidates, "--out", tmp_path / "p", "--batch-size", 4)
    done = brainfast(*build, *project, "--skip-unreadable", "--quiet")
    assert_one_line(done, "source: expected an image that can be read, got none of 13, such as")
    assert "got no pool there" in str(command("pool", "info", tmp_path / "p").exception)
    for path, data in images.items():
        path.write_bytes(data)
    again = command(*build, *project, "--quiet")
    assert again.stdout == f"pool: {tmp_path / 'p'}, 13 candidates\n"


def test_candidates_are_counted_the_same_everywhere(command, candidates, broken, tmp_path):
    pool = tmp_path / "p"
    done = command("pool", "build", tmp_path, candidates, "--out", pool, "--skip-unreadable")
    assert done.stdout.endswith("12 candidates, 1 removed\n")
    told = command("pool", "info", pool).output
    assert told.startswith("12 candidates, 7 features in bf16, 0.0 MB, 1 removed\n")
    about = json.loads(command("pool", "info", pool, "--json").output)
    assert (about["candidates"], about["removed"]) == (12, 1)
    found = Pool.open(pool)
    assert len(found) == 12
    assert "12 candidates, 7 features in bf16, 0.0 MB, 1 removed" in repr(found)


def test_what_was_computed_of_an_image_that_changed_is_stale(command, candidates, broken, tmp_path):
    build = ("pool", "build", tmp_path, candidates, "--out", tmp_path / "p", "--batch-size", 4)
    command(*build)
    first = min(candidates.rglob("*.png"))
    first.write_bytes(broken[1])
    assert "a pool of other images" in str(command(*build).exception)


def test_only_a_pool_is_written_to(command, candidates, tmp_path):
    (tmp_path / "file").write_text("")
    for out, words in (
        (candidates / "a", "expected a new folder, or a pool, got one with '00.png' in it"),
        (tmp_path / "file", "expected a folder, got a file"),
    ):
        before = set(tmp_path.rglob("*"))
        done = command("pool", "build", tmp_path, candidates, "--out", out)
        assert words in str(done.exception)
        assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["pool", "select"])
def test_each_command_has_help(command, name):
    assert f"{name} [OPTIONS]" in command(name, "--help").output
