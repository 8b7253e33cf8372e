from __future__ import annotations

import sys
from collections import namedtuple

import pytest

import ceilings
import run
from brainfast import forms
from brainfast.bench import Row
from brainfast.errors import BrainfastError
from brainfast.files import write_json
from cases import WHOLE, Case
from measured import Measured
from stages import open_stage

CEILINGS = (
    "fma_gflop_per_s",
    "l3_gbyte_per_s",
    "dram_gbyte_per_s",
    "matmul_fp32_gflop_per_s",
    "matmul_bf16_gflop_per_s",
)
CASES = tuple(Case("embed", (2,), V=vertices, K=16) for vertices in (40, 50, 60))


class Opened(namedtuple("Opened", "case")):
    def work(self, precision, batch):
        return ceilings.Work(1e6, 1e6)


@pytest.fixture
def measured_cases(monkeypatch):
    """The names of the cases that were measured; ceilings and comparison cost nothing."""
    names = []

    def compare(stage, batches, rounds, **options):
        names.append(stage.case.name)
        return [Row("form", "brainfast", "fp32", batches[0], best_ms=1.0)]

    monkeypatch.setattr(ceilings, "measure", lambda: dict.fromkeys(CEILINGS, 1.0))
    monkeypatch.setattr(run, "open_stage", lambda case, folder, threads: Opened(case))
    monkeypatch.setattr(run, "compare", compare)
    return names


def measure(cases, **options):
    return run.measure(cases, rounds=1, threads=1, budget_s=1.0, progress=False, **options)


def names_of(result):
    return [table["case"]["name"] for table in result["tables"]]


def test_a_run_that_is_stopped_goes_on_where_it_was(measured_cases):
    def stop(result):
        if len(result["tables"]) == 2:
            parts.append(result)
            raise KeyboardInterrupt

    parts = []
    with pytest.raises(KeyboardInterrupt):
        measure(CASES, after_case=stop)
    assert names_of(parts[0]) == [case.name for case in CASES[:2]]
    result = measure(CASES, before=parts[0])
    assert measured_cases == [case.name for case in CASES]
    assert names_of(result) == measured_cases
    assert result["tables"][:2] == parts[0]["tables"]
    again = measure(CASES, before=result)
    assert again["tables"] == result["tables"]
    assert len(measured_cases) == 3


def test_an_earlier_result_of_another_machine_is_refused(measured_cases):
    result = measure(CASES[:1])
    result["machine"] |= {"cpu": "another"}
    with pytest.raises(SystemExit, match="another machine"):
        measure(CASES, before=result)


def test_a_case_that_fails_does_not_cost_the_others(measured_cases, monkeypatch, tmp_path):
    compare = run.compare

    def sometimes(stage, *rest, **options):
        if stage.case == CASES[1]:
            raise BrainfastError("form", expected="right numbers", got="wrong ones")
        return compare(stage, *rest, **options)

    monkeypatch.setattr(run, "compare", sometimes)
    result = measure(CASES)
    assert names_of(result) == [CASES[0].name, CASES[2].name]
    assert "right numbers" in result["failed"][CASES[1].name]
    write_json(tmp_path / "cpu.json", result)
    assert list(Measured.read(tmp_path / "cpu.json").missing) == [CASES[1].name]


def test_the_exit_code_tells_of_a_failure(measured_cases, monkeypatch, tmp_path):
    def fail(*rest, **options):
        raise BrainfastError("form", expected="right numbers", got="wrong ones")

    monkeypatch.setattr(run, "compare", fail)
    arguments = ["run.py", "--only", "embed", "--quick", "--out", str(tmp_path / "cpu.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"failed: embed-.*right numbers"):
        run.main()
    assert (tmp_path / "cpu.json").exists()


def test_a_case_that_does_not_fit_is_left_out_with_the_reason(measured_cases, monkeypatch):
    most = max(case.memory for case in CASES)
    monkeypatch.setattr(run, "available_memory", lambda: most - 1)
    result = measure(CASES)
    assert names_of(result) == [case.name for case in CASES[:2]]
    assert "GiB are free" in result["left_out"][CASES[2].name]


def test_memory_grows_with_the_subjects():
    one, eight = (case for case in WHOLE if case.stage == "blobgpt")
    weights = 4 * one.V * one.K
    assert eight.memory - one.memory > 7 * weights - 60 * 24 * one.L * one.T * (one.C + one.K)


def test_without_onnx_runtime_its_form_is_a_row_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    stage = open_stage(CASES[0], tmp_path, 1)
    built = [form for _, build in stage.builders() for form in build()]
    rows = run.compare(stage, (2,), 1, progress=False)
    assert [form.problem for form in built if form.library == forms.ONNX_RUNTIME] == [
        "onnxruntime is not installed"
    ]
    assert [row.note for row in rows if row.best_ms is None] == ["onnxruntime is not installed"]
    assert sum(row.best_ms is not None for row in rows) == len(built) - 1


def test_a_form_that_does_not_build_says_what_was_raised():
    def build():
        raise RuntimeError("no compiler")

    form = forms.stock_form("linear", forms.COMPILED, "fp32", build)
    assert form.problem == "does not build (RuntimeError)"
    assert not form.variants
