"""What a GPU machine runs imports where torch, numpy and timm are, with what these bring."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = (
    "brainfast.ops",
    "brainfast.folded",
    "brainfast.folded_blobgpt",
    "brainfast.images",
    "brainfast.bytes_to_pixels",
    "brainfast.trunks",
    "brainfast.device_heads",
    "brainfast.device_engine",
    "brainfast.engine",
    "brainfast.group_engine",
    "brainfast.bench",
)
FILES = (
    *sorted((ROOT / "tests" / "ops").glob("test_*cuda*.py")),
    *sorted((ROOT / "tests").glob("test_device_*.py")),
    *sorted((ROOT / "benchmarks").glob("gpu*.py")),
)
# As if these were not installed: to a finder they are not on the path.
IMPORT = """
import sys
from importlib import import_module
from importlib.machinery import PathFinder
MISSING = {
    "hypothesis", "matplotlib", "nibabel", "nilearn", "onnx", "onnxruntime", "onnxscript",
    "pydantic", "scipy", "skimage", "sklearn", "typer",
}
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *others):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, *others)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
for name in sys.argv[1:]:
    print(name, flush=True)
    import_module(name)
assert not MISSING & {name.split(".")[0] for name in sys.modules}
"""


def bare(modules: Iterable[str], *folders: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = {list(map(str, folders))}{IMPORT}"
    command = [sys.executable, "-c", code, *modules]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_these_modules_import() -> None:
    done = bare(MODULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == list(MODULES)


def test_these_files_import() -> None:
    assert len(FILES) >= 3
    done = bare([path.stem for path in FILES], *{path.parent for path in FILES})
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_missing_is_missing() -> None:
    done = bare(["brainfast.card"])
    assert "No module named 'pydantic'" in done.stderr
