"""What setup.py puts into a source archive and a wheel."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")
pytest.importorskip("pybind11")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the build reads, without what an older build left."""
    folder = tmp_path_factory.mktemp("source")
    left = shutil.ignore_patterns("*.so", "*.ptx", "__pycache__")
    for name in ("brainfast", "export", "csrc", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=left)
    names = ("setup.py", "pyproject.toml", "MANIFEST.in", "CMakeLists.txt", "README.md", "LICENSE")
    for name in names:
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, *arguments: object) -> None:
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_source_archive_holds_all_that_a_build_reads(source, tmp_path):
    before = files_under(source)
    build(source, "sdist", "-d", tmp_path)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert before <= held


def test_modules_of_an_older_build_are_not_shipped(source, tmp_path):
    library = tmp_path / "lib"
    (library / "brainfast").mkdir(parents=True)
    (library / "brainfast" / "bench.py").write_text("stale = True\n")
    build(source, "build_py", "--build-lib", library)
    expected = {f"brainfast/{name}" for name in files_under(source / "brainfast")}
    expected |= {f"brainfast/export/{name}" for name in files_under(source / "export")}
    assert files_under(library) == expected


@pytest.fixture
def build_ext(monkeypatch, tmp_path):
    """The command of setup.py that builds the module, for a build folder of its own."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("brainfast_setup", ROOT / "setup.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    command = given["cmdclass"]["build_ext"](setuptools.Distribution(given))
    command.build_lib = str(tmp_path)
    command.ensure_finalized()
    return command


@pytest.mark.filterwarnings("ignore:setup.py install is deprecated")
@pytest.mark.parametrize("inplace", [False, True])
def test_the_kernel_beside_the_module_is_an_output(build_ext, tmp_path, inplace):
    """A strict editable install links the outputs and nothing else."""
    build_ext.inplace = inplace
    ptx = tmp_path / "brainfast" / "factor_readout.ptx"
    (module,) = build_ext.get_outputs()
    assert module.startswith(str(tmp_path / "brainfast" / "_C."))
    ptx.parent.mkdir()
    ptx.touch()
    assert build_ext.get_outputs() == [module, str(ptx)]
    copies = build_ext.get_output_mapping()
    assert set(copies) == ({module, str(ptx)} if inplace else set())
    if inplace:
        assert Path(copies[str(ptx)]) == ROOT / "brainfast" / "factor_readout.ptx"
