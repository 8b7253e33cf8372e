"""A pool that grows, killed after every step: the old pool or the new one, never a broken one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from brainfast import pool_choice
from brainfast.errors import BrainfastError
from brainfast.pool import Pool
from brainfast.pool_choice import Rows
from brainfast.pool_file import BASIS_FILE, DATA_FILE, INDEX_FILE, ITEMS_FILE

FILES = {BASIS_FILE, DATA_FILE, INDEX_FILE, ITEMS_FILE}
STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


@pytest.fixture(autouse=True)
def small_parts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates are copied at a time: eleven of two features, three of seven."""
    monkeypatch.setattr(pool_choice, "_BLOCK_BYTES", 90)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # what a kill leaves does not depend on it


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of six further images."""
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 9, 40)).save(folder / f"new-{number}.png")
    return folder


def killed(step: int, act: Callable[[], object]) -> bool:
    """Whether a process that dies before its step of that number on the disk had not ended yet.

    A step is a file that is opened for writing, synced, renamed or removed.
    """
    child = os.fork()
    if child == 0:
        left = iter(range(step))

        def count(name: str, arguments: tuple[Any, ...]) -> None:
            writes = name != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            if name in STEPS and writes and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda file: count("os.rename", ())
        sys.addaudithook(count)
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}


def test_adding(make_engine: Any, candidates: Path, more: Path, tmp_path: Path) -> None:
    engine, first = make_engine("blobgpt"), tmp_path / "first"
    options: Any = {"dtype": "int8", "project": ["FFA", "PPA"], "batch_size": 4}
    pool = Pool.build(engine, candidates, path=first, **options)
    pool.remove([pool.names[3]])
    old = contents(first)
    whole = shutil.copytree(first, tmp_path / "whole")
    Pool.open(whole, engine).add(more, batch_size=4)
    new, found = contents(whole), set()
    for step in range(200):
        path = shutil.copytree(first, tmp_path / f"killed-{step}" / "pool")
        opened = Pool.open(path, engine)
        if not killed(step, lambda pool=opened: pool.add(more, batch_size=4)):
            break
        after = Pool.open(path, engine)
        assert after.verify() == []
        assert contents(path) in (old, new)
        found.add(len(after))
        if len(after) == 12:
            assert len(after.add(more, batch_size=4)) == 18
        else:
            with pytest.raises(BrainfastError, match="new candidates"):
                after.add(more)
        assert contents(path) == new
        assert [each.name for each in path.parent.iterdir()] == ["pool"]
    assert found == {12, 18}
    assert step > 30
    assert contents(path) == new


def test_removing(make_engine: Any, candidates: Path, tmp_path: Path) -> None:
    pool = Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "pool")
    name, lengths = pool.names[5], []
    for step in range(20):
        path = shutil.copytree(pool.path, tmp_path / f"killed-{step}")
        opened = Pool.open(path)
        ended = not killed(step, lambda pool=opened: pool.remove([name]))
        lengths.append(len(Pool.open(path)))
        if ended:
            break
    assert lengths == sorted(lengths, reverse=True)
    assert set(lengths) == {13, 12}


def test_what_was_copied_is_not_copied_again_and_never_all_at_once(
    make_engine: Any, candidates: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("blobgpt")
    pool = Pool.build(engine, candidates, path=tmp_path / "pool")
    copied, right = [], Rows.stored

    def stored(self: Rows, rows: Any) -> Any:
        if len(copied) == 2:
            copied.append(0)
            raise KeyboardInterrupt
        copied.append(len(rows))
        return right(self, rows)

    monkeypatch.setattr(Rows, "stored", stored)
    with pytest.raises(KeyboardInterrupt):
        pool.add(more)
    grown = pool.add(more)
    assert len(grown) == 19
    assert sum(copied) == 13
    assert max(copied) == 3
    assert grown.verify() == []
    with pytest.raises(BrainfastError, match="one that was changed since; open it again"):
        pool.verify()


@pytest.fixture
def rows_lost(tmp_path: Path, candidates: Path, make_engine: Any) -> Path:
    """A pool half built, whose data somebody deleted."""
    engine, path = make_engine("blobgpt"), tmp_path / "pool"
    right = engine.tokens

    def stop(*given: Any, **options: Any) -> Any:
        if engine.batches == 2:
            raise KeyboardInterrupt
        return right(*given, **options)

    engine.tokens = stop
    with pytest.raises(KeyboardInterrupt):
        Pool.build(engine, candidates, path=path, batch_size=4)
    (path / "pool.partial").unlink()
    return path


def test_rows_that_were_lost_are_computed_again(
    rows_lost: Path, candidates: Path, make_engine: Any, tmp_path: Path
) -> None:
    def build(path: Path) -> Pool:
        return Pool.build(make_engine("blobgpt"), candidates, path=path, batch_size=4)

    whole = contents(build(tmp_path / "whole").path)
    for step in range(99):
        path = shutil.copytree(rows_lost, tmp_path / f"killed-{step}")
        going = killed(step, lambda path=path: build(path))
        assert contents(build(path).path) == whole
        if not going:
            break
    assert step > 10
