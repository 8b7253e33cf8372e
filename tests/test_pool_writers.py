"""Two writers of one pool, builds that go on under other names, and what a kill leaves behind."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast import pool_build
from brainfast.data.token_file import locked
from brainfast.errors import BrainfastError
from brainfast.pool import Pool
from brainfast.pool_file import INDEX_FILE, LOCK_FILE


@pytest.fixture
def engine(make_engine: Any) -> Any:
    return make_engine("blobgpt")


@pytest.fixture
def pool(engine: Any, candidates: Path, tmp_path: Path) -> Pool:
    return Pool.build(engine, candidates, path=tmp_path / "pool", dtype="fp32", batch_size=4)


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 9, 40)).save(folder / f"new-{number}.png")
    return folder


def test_removals_of_two_processes_are_joined(pool: Pool) -> None:
    other, names = Pool.open(pool.path), pool.names
    other.remove([names[2]])
    pool.remove([names[5]])
    assert pool.items.removed == Pool.open(pool.path).items.removed == (2, 5)
    assert names[2] not in pool.names


@pytest.mark.parametrize("act", ["remove", "add"])
def test_a_pool_that_grew_since_it_was_opened_is_refused_and_whole(
    pool: Pool, tmp_path: Path, act: str
) -> None:
    names = pool.names
    grown = pool.add(images(tmp_path / "more", 2))
    given: Any = [names[0]] if act == "remove" else images(tmp_path / "again", 3)
    with pytest.raises(BrainfastError, match=r"as it was opened.*open it again"):
        getattr(pool, act)(given)
    assert Pool.open(pool.path).names == grown.names


def test_what_another_process_removed_is_left_behind_by_add(pool: Pool, tmp_path: Path) -> None:
    Pool.open(pool.path).remove([pool.names[0]])
    grown = pool.add(images(tmp_path / "more", 1))
    assert grown.names == (*pool.names, "new-0.png")
    assert len(grown) == grown.index.items == 13


@pytest.mark.parametrize("act", ["remove", "add"])
def test_one_writer_at_a_time(pool: Pool, tmp_path: Path, act: str) -> None:
    given: Any = [pool.names[0]] if act == "remove" else images(tmp_path / "more", 1)
    with locked(pool.path, LOCK_FILE), pytest.raises(BrainfastError, match="one process working"):
        getattr(pool, act)(given)
    assert len(Pool.open(pool.path)) == 13


def test_the_pool_is_held_while_it_grows(pool: Pool, engine: Any, tmp_path: Path) -> None:
    right, refused = engine.tokens, []

    def tokens(*given: Any, **options: Any) -> Any:
        with pytest.raises(BrainfastError, match="one process working"):
            Pool.open(pool.path).remove([pool.names[0]])
        refused.append(True)
        return right(*given, **options)

    engine.tokens = tokens
    assert len(pool.add(images(tmp_path / "more", 1))) == 14
    assert refused


def test_building_again_takes_new_names_and_categories(
    pool: Pool, engine: Any, candidates: Path, tmp_path: Path
) -> None:
    pool.remove([pool.names[1]])
    table = tmp_path / "categories.csv"
    table.write_text("".join(f"{name},new\n" for name in pool.items.names))
    again = Pool.build(engine, candidates, path=pool.path, dtype="fp32", categories=table)
    assert set(again.items.categories) == {"new"}
    assert again.items.removed == (1,)
    moved = shutil.copytree(candidates, tmp_path / "moved")
    for path in sorted(moved.rglob("*.png")):
        path.rename(path.with_name(f"z-{path.name}"))
    renamed = Pool.build(engine, moved, path=pool.path, dtype="fp32")
    assert all(Path(name).name.startswith("z-") for name in renamed.names)
    assert len(renamed) == 12


def test_an_interrupted_add_of_other_images_tells_what_to_delete(
    pool: Pool, engine: Any, tmp_path: Path
) -> None:
    right = engine.tokens

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    engine.tokens = stop
    with pytest.raises(KeyboardInterrupt):
        pool.add(images(tmp_path / "more", 2))
    engine.tokens = right
    adding = pool.path.with_name("pool.adding")
    with pytest.raises(BrainfastError, match=f"delete {adding}"):
        pool.add(images(tmp_path / "others", 3))
    shutil.rmtree(adding)
    assert len(pool.add(tmp_path / "others")) == 16


def test_an_interrupted_add_goes_on_once_its_image_is_mended(
    pool: Pool, engine: Any, tmp_path: Path
) -> None:
    more = images(tmp_path / "more", 6)
    broken = more / "new-5.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:45])
    with pytest.raises(BrainfastError, match="replace it"):
        pool.add(more, batch_size=4)
    broken.write_bytes(whole)
    batches = engine.batches
    grown = pool.add(more, batch_size=4)
    assert engine.batches == batches + 1, "what was computed is kept"
    assert len(grown) == 19
    assert grown.verify() == []


def test_a_row_that_a_kill_left_unreadable_is_read_again(
    engine: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of candidates is written before the index that counts them."""
    broken = sorted(candidates.rglob("*.png"))[9]
    whole, right = broken.read_bytes(), pool_build._write_index
    broken.write_bytes(whole[:60])

    def write(folder: Path, index: Any) -> None:
        if index.done > 8:
            raise KeyboardInterrupt
        right(folder, index)

    monkeypatch.setattr(pool_build, "_write_index", write)
    options: Any = {"path": tmp_path / "p", "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        Pool.build(engine, candidates, skip_unreadable=True, **options)
    monkeypatch.undo()
    broken.write_bytes(whole)
    assert len(Pool.build(engine, candidates, **options)) == 13


def test_a_pool_grows_behind_a_link_and_opens_from_inside(
    pool: Pool, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "links" / "link"
    link.parent.mkdir()
    link.symlink_to(pool.path)
    grown = Pool.open(link, engine).add(images(tmp_path / "more", 1))
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]
    assert grown.path == pool.path
    monkeypatch.chdir(link)
    assert len(Pool.open(".")) == 14


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_during_the_swap_leaves_no_old_folder(
    pool: Pool, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Between the renames, and after both of them."""
    own = shutil.copytree(pool.path, tmp_path / "pool.old")
    more, renames = images(tmp_path / "more", 1), [os.rename]

    def rename(old: Any, new: Any) -> None:
        if len(renames) == 2 and moment == 1:
            raise KeyboardInterrupt
        renames[0](old, new)
        renames.append(renames[0])
        if len(renames) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool_build.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        pool.add(more)
    monkeypatch.undo()
    assert (tmp_path / ".pool.replaced").is_dir()
    assert len(Pool.open(pool.path, engine)) == 14
    assert not (tmp_path / ".pool.replaced").exists()
    assert (own / INDEX_FILE).is_file(), "a user's own copy is left alone"


def test_what_a_user_keeps_beside_the_data_stays(pool: Pool, tmp_path: Path) -> None:
    (pool.path / "notes.txt").write_text("of the first session")
    (pool.path / "tables").mkdir()
    (pool.path / "tables" / "categories.csv").write_text("a,b")
    grown = pool.add(images(tmp_path / "more", 1))
    assert (grown.path / "notes.txt").read_text() == "of the first session"
    assert (grown.path / "tables" / "categories.csv").read_text() == "a,b"


def test_latents_of_another_precision_are_stale(pool: Pool, engine: Any) -> None:
    engine.head = engine.head.with_precision("bf16")
    with pytest.raises(BrainfastError, match="a pool of other head precision"):
        Pool.open(pool.path, engine)


def test_aligned_tokens_serve_a_head_of_any_precision(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine = make_engine("factortopy")
    pool = Pool.build(engine, candidates, path=tmp_path / "p")
    engine.head = engine.head.with_precision("bf16")
    assert len(Pool.open(pool.path, engine)) == 13


def test_an_engine_may_be_given_later_if_it_is_the_one(pool: Pool, engine: Any) -> None:
    without = Pool.open(pool.path)
    asked = without.with_engine(engine)
    np.testing.assert_array_equal(asked.score("FFA"), pool.score("FFA"))
    assert without.engine is None
    projection = engine.head.projection
    other = replace(projection, latent_bias=projection.latent_bias + 1)
    engine.head = replace(engine.head, projection=other)
    with pytest.raises(BrainfastError, match="a pool of other folded head"):
        without.with_engine(engine)
