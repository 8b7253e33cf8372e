"""`brainfast pool` and `brainfast select`, over an engine that needs no trunk."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from brainfast import cli, cli_pool
from brainfast.errors import BrainfastError
from brainfast.pool_file import DATA_FILE


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


def test_info(command, pool):
    assert "13 candidates, 7 features in bf16" in command("pool", "info", pool).output
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
    assert command("pool", "remove", pool, name).output.endswith("12 candidates\n")
    assert command("pool", "verify", pool).output == "sound\n"
    done = command("pool", "verify", pool, candidates)
    assert (done.exit_code, done.output) == (1, f"{name}: not in the pool\n")
    again = command("pool", "add", pool, tmp_path, candidates / name, "--quiet")
    assert again.output.endswith("13 candidates\n")
    data = bytearray((pool / DATA_FILE).read_bytes())
    data[-1] ^= 1
    (pool / DATA_FILE).write_bytes(data)
    assert command("pool", "verify", pool).exit_code == 1


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


@pytest.mark.parametrize("name", ["pool", "select"])
def test_each_command_has_help(command, name):
    assert f"{name} [OPTIONS]" in command(name, "--help").output
