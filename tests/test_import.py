"""Importing brainfast: quick, without torch, and never from a source tree that is not built."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import brainfast
import brainfast.export

PACKAGE = Path(brainfast.__path__[0])
EXPORT = Path(brainfast.export.__path__[0])


def python(code: str, folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(statement: str, tmp_path: Path) -> set[str]:
    done = python(
        f"import sys; {statement}; print(*sys.modules)", tmp_path, PYTHONPATH=str(PACKAGE.parent)
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_takes_nothing_heavy(tmp_path):
    loaded = loaded_by("import brainfast", tmp_path)
    assert "brainfast" in loaded
    assert not loaded & {"numpy", "torch", "timm", "matplotlib", "nilearn", "pydantic"}


@pytest.mark.parametrize("module", ["brainfast.cli", "brainfast.engine", "brainfast.export.model"])
def test_these_modules_need_no_torch(module, tmp_path):
    assert not loaded_by(f"import {module}", tmp_path) & {"torch", "timm"}


def test_every_verb_is_there():
    assert sorted(brainfast.__all__) == dir(brainfast)
    for name in brainfast.__all__:
        assert getattr(brainfast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = brainfast.nothing


@pytest.fixture
def source_tree(tmp_path) -> Path:
    """A clone that nobody has built."""
    tree = tmp_path / "clone"
    copy_package(tree / "brainfast", "_C*.so", "*.pyd")
    shutil.copytree(EXPORT, tree / "export")
    assert importlib.util.find_spec("brainfast._C") is not None
    return tree


def copy_package(place: Path, *without: str) -> None:
    shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("export", *without))


def test_a_source_tree_finds_the_installed_package(source_tree, tmp_path):
    installed = tmp_path / "site"
    installed.mkdir()
    (installed / "brainfast").symlink_to(PACKAGE)
    done = python(
        "import brainfast, brainfast._C, brainfast.files; print(brainfast.files.__file__)",
        source_tree,
        PYTHONPATH=str(installed),
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == (PACKAGE / "files.py").resolve()


def test_a_source_tree_finds_an_editable_install(source_tree):
    finder = f"""
import importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "brainfast":
            place = {str(PACKAGE)!r}
            return importlib.util.spec_from_file_location(
                name, place + "/__init__.py", submodule_search_locations=[place])
sys.meta_path.append(Finder)
import brainfast.errors
print(brainfast.errors.__file__)
"""
    done = python(finder, source_tree, "-S")
    assert done.stdout.strip() == str(PACKAGE / "errors.py"), done.stderr


def test_a_source_tree_alone_says_what_to_do(source_tree):
    done = python("import brainfast", source_tree, "-S")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: brainfast: expected a built package, got the source tree {source_tree};"
        " run 'pip install .' there first"
    )


def where_export_is(folder: Path, *paths: Path, **environment: str) -> Path:
    """The folder of brainfast.export, as a process in `folder` finds it."""
    done = python(
        "import brainfast.export.about; print(brainfast.export.about.__file__)",
        folder,
        PYTHONPATH=os.pathsep.join(map(str, paths)),
        **environment,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).parent.resolve()


@pytest.fixture
def wheel(tmp_path) -> Path:
    """Site-packages with the package as a wheel has it, beside another package called export."""
    site = tmp_path / "site"
    copy_package(site / "brainfast")
    shutil.copytree(EXPORT, site / "brainfast" / "export")
    (site / "export").mkdir()
    (site / "export" / "__init__.py").touch()
    return site


def test_export_of_a_wheel_lies_inside(wheel, tmp_path):
    assert where_export_is(tmp_path, wheel) == wheel / "brainfast" / "export"


def test_export_of_a_built_checkout_lies_beside(source_tree, tmp_path):
    for binary in PACKAGE.glob("_C*.so"):
        (source_tree / "brainfast" / binary.name).symlink_to(binary)
    assert where_export_is(source_tree) == source_tree / "export"
    assert where_export_is(tmp_path, source_tree) == source_tree / "export"


def test_export_comes_from_where_the_rest_does(source_tree, wheel):
    assert where_export_is(source_tree, wheel) == wheel / "brainfast" / "export"


def test_every_verb_of_export_is_there():
    assert sorted(brainfast.export.__all__) == dir(brainfast.export)
    for name in brainfast.export.__all__:
        assert getattr(brainfast.export, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = brainfast.export.nothing
