"""Build, test and measure on this machine's GPU, and write one JSON: what `gpu.sh` runs.

sh benchmarks/gpu.sh [--budget 530] [--only tests,readout] [--name nvidia-h200]

Each stage is a process of its own with a limit of time; what it finds is written at once, and one
that fails does not cost the others. Nothing here imports the package, which the first stage builds.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUDGET_S = 530.0  # below nine minutes
LEAST_S = 10.0  # for which a stage is worth its start
STARTING_S = 20.0  # of a benchmark's limit that its process needs before and after
TAIL = 4000  # characters of a stage's output that are kept where it fails
REQUIRE_CUDA = {"BRAINFAST_REQUIRE_CUDA": "1"}
MEASURED = (  # benchmark stages and their limits in seconds
    *(("readout", 60.0), ("training", 60.0), ("image", 75.0), ("blobgpt", 60.0)),
    *(("tokens", 45.0), ("projection", 40.0), ("embed", 40.0), ("topk", 40.0)),
)
PACKAGES = ("torch", "triton", "timm", "numpy", "onnxruntime")

Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What one process does; `most` is its limit in seconds.

    measures: it writes a part of the result, whose path and budget are appended to its command.
    needs: a program without which it is left out.
    """

    name: str
    command: tuple[str, ...]
    most: float
    environment: Mapping[str, str] = field(default_factory=dict)
    measures: bool = False
    needs: str = ""


def stages(architecture: str) -> tuple[Stage, ...]:
    """In their order: what must be known first, then figures, then what takes long."""
    python = sys.executable
    build = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall", ".")
    cuda = {"BRAINFAST_CUDA": "1", "BRAINFAST_CUDA_ARCHS": architecture}
    every_op = (python, "benchmarks/gpu_every_op.py")
    sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or a stray access hits the cache's memory
    ours = ("--kernel-regex", "kns=brainfast")
    return (
        Stage("build", (python, *build), 200.0, cuda),
        Stage("tests", (python, "benchmarks/gpu.py", "--pytest"), 120.0, REQUIRE_CUDA),
        *(_measuring(*each) for each in MEASURED),
        Stage(
            *("memcheck", (*sanitizer, "memcheck", *ours, *every_op), 75.0, uncached),
            needs=sanitizer[0],
        ),
        Stage("racecheck", (*sanitizer, "racecheck", *ours, *every_op), 75.0, needs=sanitizer[0]),
        _measuring("compiled", 150.0),
    )


def _measuring(name: str, most: float) -> Stage:
    command = (sys.executable, "benchmarks/gpu_stage.py", name)
    return Stage(name, command, most, measures=True)


def run(chosen: Sequence[Stage], out: Path, about: Result, budget_s: float) -> Result:
    """Run the stages; the result so far is in `out` after each of them."""
    started = time.monotonic()
    result: Result = {**about, "stages": {}, "tables": [], "failed": {}, "left_out": {}}
    for stage in chosen:
        left = budget_s - (time.monotonic() - started)
        problem = _left_out(stage, left)
        if problem:
            result["left_out"][stage.name] = problem
        else:
            print(f"== {stage.name}", flush=True)
            _merge(result, stage, *_run(stage, min(stage.most, left)))
        result["seconds"] = round(time.monotonic() - started)
        write(out, result)
        if stage.name == "build" and "build" in result["failed"]:
            break  # an earlier build would be measured
    return result


def _left_out(stage: Stage, left: float) -> str:
    if stage.needs and shutil.which(stage.needs) is None:
        return f"{stage.needs} is not installed"
    return "" if left >= LEAST_S else "no time left"


def _run(stage: Stage, limit: float) -> tuple[float, str, Result]:
    """(seconds, what went wrong, the part that it wrote)."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="brainfast-gpu-") as folder:
        part, log = Path(folder) / "part.json", Path(folder) / "log"
        command = list(stage.command)
        if stage.measures:
            budget = max(LEAST_S / 2, limit - STARTING_S)
            command += ["--out", str(part), "--budget", f"{budget:.0f}"]
        environment = os.environ | dict(stage.environment) | {"PYTHONUNBUFFERED": "1"}
        with log.open("w") as output:
            problem = _wait(command, environment, output, limit)
        text = log.read_text(errors="replace")
        print(text[-TAIL:], flush=True)
        found = json.loads(part.read_text()) if part.is_file() else {}
    if problem:
        problem = f"{problem}\n{text[-TAIL:]}"
    return round(time.monotonic() - started, 1), problem, found


def _wait(command: list[str], environment: dict[str, str], output: Any, limit: float) -> str:
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"does not start: {error}"
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit:.0f} s"
    return "" if code == 0 else f"exit code {code}"


def _merge(result: Result, stage: Stage, seconds: float, problem: str, part: Result) -> None:
    result["stages"][stage.name] = {"ok": not problem, "seconds": seconds}
    result["tables"] += part.get("tables", [])
    if part.get("ceilings"):
        result["stages"][stage.name]["ceilings"] = part["ceilings"]
    found = dict(part.get("failed", {}))
    if problem and not (found and problem.startswith("exit code 1")):
        found.setdefault(stage.name, problem)
    result["failed"] |= found


def machine() -> Result:
    """The GPU, its driver, and versions."""
    query = "name,driver_version,memory.total,compute_cap"
    lines = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]).splitlines()
    fields = [part.strip() for part in (lines[0] if lines else "").split(",")]
    names = ("gpu", "driver", "memory", "compute_capability")
    found: Result = dict(zip(names, fields, strict=False))
    compiler = re.search(r"release ([\d.]+)", _output(["nvcc", "--version"]))
    versions = {"python": platform.python_version(), "nvcc": compiler.group(1) if compiler else ""}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    return found | {"system": f"{platform.system()} {platform.machine()}", "versions": versions}


def architecture_of(capability: str) -> str:
    """What CMake calls the code of one GPU; 9.0 has instructions that only 90a gives."""
    number = capability.replace(".", "")
    return {"90": "90a", "100": "100a"}.get(number, number) + "-real" if number else ""


def run_tests() -> int:
    """The CUDA tests, without what needs packages that such a machine may lack.

    The conftest of all tests imports the whole package, so it is left out.
    """
    below = sorted(glob.glob("tests/ops/*cuda*.py", root_dir=ROOT))
    above = sorted(glob.glob("tests/test_device_*.py", root_dir=ROOT))
    above.append("tests/test_static_step.py")
    options = ["-q", "-k", "not emulated", "-p", "no:cacheprovider"]
    codes = [
        subprocess.call([sys.executable, "-m", "pytest", *options, *arguments], cwd=ROOT)
        for arguments in (["--confcutdir=tests/ops", *below], ["--noconftest", *above])
    ]
    return max(codes)


def write(path: Path, result: Result) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def main() -> None:
    """Parse the command line, run, print the JSON; exit code 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    parser.add_argument("--only", default="", help="stages, e.g. build,tests,readout (all)")
    parser.add_argument("--name", default="", help="results/gpu-NAME.json (the GPU's name)")
    parser.add_argument("--out", type=Path, help="another file")
    parser.add_argument("--pytest", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pytest:
        raise SystemExit(run_tests())
    about = machine()
    if not about.get("gpu"):
        raise SystemExit("gpu.sh: expected an NVIDIA GPU, got none from nvidia-smi")
    name = given.name or re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    out = given.out or RESULTS / f"gpu-{name}.json"
    known = stages(architecture_of(about.get("compute_capability", "")))
    only = [word for word in given.only.split(",") if word]
    unknown = sorted(set(only) - {stage.name for stage in known})
    if unknown:
        names = ", ".join(stage.name for stage in known)
        raise SystemExit(f"--only: expected some of {names}, got {', '.join(unknown)}")
    chosen = [stage for stage in known if not only or stage.name in only]
    result = run(chosen, out, {"name": name, "machine": about}, given.budget)
    print(json.dumps(result, indent=1))
    for kind in ("left_out", "failed"):
        for stage, reason in result[kind].items():
            print(f"{kind.replace('_', ' ')}: {stage}: {reason}", file=sys.stderr)
    raise SystemExit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
