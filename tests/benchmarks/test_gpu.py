"""The GPU's stages at tiny sizes on the CPU, whose clock stands in for the events."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gpu
import gpu_blobgpt
import gpu_ceilings
import gpu_clock
import gpu_compare
import gpu_every_op
import gpu_image
import gpu_stage
import gpu_table
import gpu_training
import readme_table
from brainfast.models.factortopy import Selectors
from brainfast.ops import reference
from brainfast.training.losses import factortopy_loss
from brainfast.training.recipes import RECIPES
from cases import GPU, WHOLE, tiny

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TIMED = ("readout", "tokens", "projection", "embed", "blobgpt", "topk")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module, name, value in (
        (gpu_ceilings, "SIDE", 32),
        (gpu_ceilings, "COPY_BYTES", 1 << 12),
        (gpu_ceilings, "ROUNDS", 2),
        (gpu_compare, "ROUNDS", 2),
        (gpu_compare, "MOST_SETS", 3),
        (gpu_image, "TIGHT", 2),
        (gpu_image, "PACED", 2),
        (gpu_image, "PACED_EVERY_S", 0.0),
    ):
        monkeypatch.setattr(module, name, value)


def tiny_cases(stage):
    """Without compiled forms, which `tiny` leaves out."""
    cases = [tiny(case) for case in GPU if case.stage == stage]
    if stage == "image":
        cases[1] = replace(cases[1], trunk="eva02_tiny_patch14_224")
    return cases


@pytest.mark.parametrize("stage", TIMED)
def test_every_form_is_checked_and_timed(stage):
    part = gpu_stage.measure(stage, tiny_cases(stage), CPU, budget_s=60)
    assert part["failed"] == {}
    json.dumps(part, allow_nan=False)
    (table,) = part["tables"]
    rows = [row for row in table["rows"] if row["best_ms"] is not None]
    assert {row["batch"] for row in rows} == {1, 3}
    assert {row["library"] for row in rows} == {"brainfast", "PyTorch"}
    for row in rows:
        assert 0 < row["best_ms"] <= row["median_ms"] <= row["p99_ms"]
        assert row["warm_ms"] > 0
        assert row["launched_ms"] > 0
        assert 0 < row["rms_error"] <= row["max_error"]
        assert row["tflop_per_s"] > 0
        assert 1 < row["sets"] <= 3
        assert row["rounds"] == 2
    assert {row["note"] for row in table["rows"]} >= {""}
    assert all(value > 0 for value in part["ceilings"].values())


class ReferenceProjection:
    """The plan's arguments and answers, by the twin."""

    def __init__(self, filters, maps, bias, *, precision):
        self.factors, self.bias = list(zip(filters, maps, strict=True)), bias

    def run(self, tokens, global_=None):
        if global_ is not None:
            pairs = zip(tokens, global_, strict=True)
            tokens = [torch.cat([g[:, None], t.flatten(2).mT], dim=1) for t, g in pairs]
        return self.bias + sum(
            reference.factor_projection(part, *factors)
            for part, factors in zip(tokens, self.factors, strict=True)
        )


class ReferenceEmbed:
    """The same of the embedding."""

    def __init__(self, weight, bias, *, precision):
        self.constants = weight, bias

    def run(self, latent):
        return reference.vertex_embed(latent, *self.constants)


@pytest.mark.parametrize("stage", ["projection", "embed"])
def test_plans_have_rows_where_kernels_run(monkeypatch, stage):
    monkeypatch.setattr(gpu_blobgpt, "has_plans", lambda device: True)
    for module in (gpu_blobgpt, gpu_every_op):
        monkeypatch.setattr(module, "CudaFactorProjectionPlan", ReferenceProjection)
        monkeypatch.setattr(module, "CudaVertexEmbedPlan", ReferenceEmbed)
    part = gpu_stage.measure(stage, tiny_cases(stage), CPU, budget_s=60)
    assert part["failed"] == {}
    rows = part["tables"][0]["rows"]
    plans = {(row["precision"], row["batch"]) for row in rows if row["form"] == "plan"}
    assert plans == {(p, b) for p in ("fp32", "bf16", "bf16x3") for b in (1, 3)}
    gpu_every_op._blobgpt_plans(CPU, (3, 17, 21, 37), "fp32")


def test_compiled_forms_are_a_stage_of_their_own(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiled.append(1) or module)
    cases = [replace(tiny(case), compiled=(3,)) for case in GPU if case.compiled]
    part = gpu_stage.measure("compiled", cases, CPU, budget_s=60)
    assert part["failed"] == {}
    assert [table["case"]["stage"] for table in part["tables"]] == ["readout", "blobgpt"]
    rows = [row for table in part["tables"] for row in table["rows"]]
    assert {(row["library"], row["batch"]) for row in rows} == {("torch.compile", 3)}
    assert all(row["ratio"] > 0 for row in rows)
    assert len(compiled) == len(rows) == 5


def test_a_wrong_form_is_not_timed_and_ours_is_a_failure():
    stage, forms = open_readout()
    ours = [form for form in forms if form.library == "brainfast"][:1]
    stock = [form for form in forms if form.library == "PyTorch"][:1]

    def spoilt(form):
        build = next(iter(form.builds.values()))
        return replace(form, builds={"": lambda: lambda *tokens: 1.01 * build()(*tokens)})

    rows = gpu_compare.compare(
        stage, [spoilt(form) for form in ours + stock], 2, CPU, until=time.monotonic() + 60
    )
    assert [row.best_ms for row in rows] == [None, None]
    assert all("expected max error" in row.note for row in rows)
    (failure,) = gpu_compare.failures(rows)
    assert "compiled head fp32 at B=2" in failure


def test_an_answer_that_is_not_written_is_found():
    stage, forms = open_readout()
    right = next(iter(forms[0].builds.values()))
    answers = []

    def build():
        def run(*tokens):
            answers.append(right()(*tokens))
            return answers[-1] if len(answers) < 3 else torch.full_like(answers[0], torch.nan)

        return run

    form = replace(forms[0], builds={"": build})
    (row,) = gpu_compare.compare(stage, [form], 1, CPU, until=time.monotonic() + 60)
    assert row.best_ms is None
    assert row.note.startswith("failed")


def open_readout():
    (case,) = tiny_cases("readout")
    from gpu_readout import GpuReadout

    stage = GpuReadout.open(case, CPU)
    return stage, stage.forms()


def test_what_needs_too_much_memory_or_time_is_left_out_with_the_reason(monkeypatch):
    stage, forms = open_readout()
    monkeypatch.setattr(gpu_clock, "free_bytes", lambda device: 1 << 20)
    rows = gpu_compare.compare(stage, forms, 3, CPU, until=time.monotonic() + 60)
    notes = {row.form: row.note for row in rows}
    assert "GiB are free" in notes["Listing 1"]
    assert notes["compiled head"] == ""
    rows = gpu_compare.compare(stage, forms, 3, CPU, until=time.monotonic() - 1)
    assert {row.note for row in rows} == {"left out: no time left"}
    assert gpu_compare.failures(rows) == []


def test_sets_are_twice_the_cache(monkeypatch):
    monkeypatch.setattr(gpu_compare, "MOST_SETS", 32)
    form = gpu_compare.GpuForm("form", "PyTorch", "fp32", {}, weight_bytes=300_000)
    inputs = (torch.zeros(50_000),)
    sets = gpu_compare._sets(form, inputs, CPU)
    assert sets * 500_000 > 2 * gpu_clock.cache_bytes(CPU) > (sets - 2) * 500_000


def test_a_stage_whose_case_fails_keeps_the_other_batches(monkeypatch):
    compare = gpu_stage.compare

    def fail_at_three(stage, forms, batch, device, **options):
        if batch == 3:
            raise RuntimeError("no more")
        return compare(stage, forms, batch, device, **options)

    monkeypatch.setattr(gpu_stage, "compare", fail_at_three)
    written = []
    part = gpu_stage.measure(
        "embed", tiny_cases("embed"), CPU, budget_s=60, write=lambda p: written.append(str(p))
    )
    assert {row["batch"] for row in part["tables"][0]["rows"]} == {1}
    assert "RuntimeError: no more" in next(iter(part["failed"].values()))
    assert "'batch': 1" in written[0]


def test_training_steps_are_counted_and_held_to_float64():
    part = gpu_stage.measure("training", tiny_cases("training"), CPU, budget_s=60)
    assert part["failed"] == {}
    rows = part["tables"][0]["rows"]
    assert [(row["form"], row["precision"]) for row in rows] == [
        *(("static step", "fp32"), ("static step", "bf16")),
        *(("cell form", "fp32"), ("Listing 1", "fp32")),
    ]
    for row in rows:
        assert row["steps_per_s"] == pytest.approx(row["steps"] / row["seconds"])
        assert 0 < row["rms_error"] <= row["max_error"]
    assert rows[0]["first_loss"] == pytest.approx(rows[3]["first_loss"], rel=1e-5)


def test_a_training_form_with_a_wrong_gradient_fails(monkeypatch):
    (case,) = tiny_cases("training")
    loss = gpu_training.Run.loss

    def spoilt(self, rows, strength):
        found = loss(self, rows, strength)
        return found * (1.01 if self.model.weight.dtype == torch.float32 else 1)

    monkeypatch.setattr(gpu_training.Run, "loss", spoilt)
    found = list(gpu_training.measure(case, CPU, time.monotonic() + 60))
    assert ["rms error of the gradient" in wrong[0] for _, wrong in found[:1]] == [True]
    assert all(rows[0].seconds is None for rows, _ in found if rows[0].precision == "fp32")


def test_the_measured_loss_is_that_of_training():
    (case,) = tiny_cases("training")
    run = gpu_training.Run(
        gpu_training.made_up_model(case, CPU), gpu_training.made_up_examples(case, CPU)
    )
    rows = torch.arange(3)
    tokens, measured = run.examples.gather(rows)
    selectors = run.model.selectors()
    predicted = run.model.respond(tokens, selectors)
    assert isinstance(selectors, Selectors)
    expected = factortopy_loss(predicted, measured, selectors, RECIPES["paper"], 0)
    found = run.loss(rows, torch.tensor(gpu_training.STRENGTH))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_images_are_answered_in_both_precisions_and_paces():
    part = gpu_stage.measure("image", tiny_cases("image"), CPU, budget_s=60)
    assert part["failed"] == {}
    factortopy, blobgpt = (table["rows"] for table in part["tables"])
    assert "FactorTopy" in factortopy[0]["form"]
    assert "BlobGPT" in blobgpt[0]["form"]
    for row in (*factortopy, *blobgpt):
        assert row["calls"] == 2
        assert 0 < row["best_ms"] <= row["p99_ms"]
        assert 0 < row["rms_error"] <= row["max_error"]
    paces = [(row["precision"], row["pace"]) for row in factortopy]
    slow = ("one a second", "one a second, kept warm")
    assert paces == [("bf16", "tight"), *(("bf16", pace) for pace in slow), ("fp32", "tight")]


def test_every_op_is_called_and_a_wrong_one_is_found(monkeypatch, capsys):
    gpu_every_op.main(CPU)
    names = capsys.readouterr().out
    for op in ("factor_readout", "plan", "factor_projection", "vertex_embed", "score_topk"):
        assert op in names
    embed = gpu_every_op.ops.vertex_embed
    monkeypatch.setattr(gpu_every_op.ops, "vertex_embed", lambda *rest: 1.1 * embed(*rest))
    with pytest.raises(SystemExit, match="expected an error of at most"):
        gpu_every_op.main(CPU)


def python(code, most=60.0, **options):
    return gpu.Stage("stage", (sys.executable, "-c", code), most, **options)


def test_a_stage_that_fails_hangs_or_cannot_start_does_not_cost_the_others(tmp_path):
    out = tmp_path / "gpu.json"
    hangs = python("import time; time.sleep(60)", most=11.0)
    stages = [
        replace(python("print('fine')"), name="fine"),
        replace(python("raise SystemExit('broken pipe of thought')"), name="fails"),
        replace(hangs, name="hangs", most=1.0),
        gpu.Stage("missing", ("no-such-program",), 60.0),
        replace(python("", needs="no-such-program"), name="needs"),
        replace(python("", environment={"A": "b"}), name="last"),
    ]
    result = gpu.run(stages, out, {"name": "x"}, budget_s=300)
    assert json.loads(out.read_text()) == result
    assert {name: stage["ok"] for name, stage in result["stages"].items()} == {
        **dict.fromkeys(("fine", "last"), True),
        **dict.fromkeys(("fails", "hangs", "missing"), False),
    }
    assert "broken pipe of thought" in result["failed"]["fails"]
    assert "stopped after 1 s" in result["failed"]["hangs"]
    assert result["left_out"] == {"needs": "no-such-program is not installed"}


def test_no_stage_starts_without_time_and_a_broken_build_ends_the_run(tmp_path):
    late = gpu.run([python("")], tmp_path / "a.json", {}, budget_s=5)
    assert late["left_out"] == {"stage": "no time left"}
    broken = replace(python("raise SystemExit(3)"), name="build")
    result = gpu.run([broken, python("")], tmp_path / "b.json", {}, budget_s=300)
    assert list(result["stages"]) == ["build"]


def test_what_a_stage_wrote_is_kept_where_it_ends_badly(tmp_path):
    code = (
        "import json, sys\n"
        "place = sys.argv[sys.argv.index('--out') + 1]\n"
        "open(place, 'w').write(json.dumps({'tables': [1], 'ceilings': {'copy': 2.0},"
        " 'failed': {'readout': 'wrong'}}))\n"
        "raise SystemExit(1)\n"
    )
    result = gpu.run([python(code, measures=True)], tmp_path / "a.json", {}, budget_s=300)
    assert result["tables"] == [1]
    assert result["failed"] == {"readout": "wrong"}
    assert result["stages"]["stage"]["ceilings"] == {"copy": 2.0}


def test_stages_fit_the_budget_of_nine_minutes_in_their_order():
    assert gpu.BUDGET_S <= 540
    names = [stage.name for stage in gpu.stages("90a-real")]
    assert names[:2] == ["build", "tests"]
    assert {"memcheck", "racecheck"} < set(names)
    assert {case.stage for case in GPU} <= set(names)
    assert gpu.architecture_of("9.0") == "90a-real"
    assert gpu.architecture_of("12.0") == "120-real"
    assert gpu.architecture_of("") == ""


def test_cases_are_those_of_the_cpu_at_the_batch_sizes_of_a_gpu():
    whole = {(case.stage, tuple(case.sizes.values())) for case in WHOLE}
    for case in GPU:
        if case.stage in TIMED:
            assert case.batches == ((1, 24) if case.stage == "topk" else (1, 8, 32, 256))
            assert (case.stage, tuple(case.sizes.values())) in whole


@pytest.fixture
def measured_run(tmp_path):
    """A result with two measured stages, as `gpu.py` would have written it."""
    parts = [
        gpu_stage.measure(stage, tiny_cases(stage), CPU, budget_s=60)
        for stage in ("embed", "training")
    ]
    tables = [table for part in parts for table in part["tables"]]
    for table in tables:
        table["case"] |= {"V": 37_984, "L": 12, "D": 128}
    image = {"name": "image", "stage": "image", "trunk": "vit", "batches": [1], "V": 37_984}
    latency = gpu_image.LatencyRow("vit + head", "brainfast", "bf16", 1, "tight", 500, 1.0, 1.1, 2)
    tables.append({"case": image, "rows": [vars(latency)]})
    machine = {"gpu": "NVIDIA H200", "driver": "1.2", "versions": {"torch": "2.11", "nvcc": "13.0"}}
    stages = {"build": {"ok": True, "seconds": 1.0}}
    stages["embed"] = {"ok": True, "seconds": 2.0, "ceilings": parts[0]["ceilings"]}
    result = {"name": "h200", "machine": machine, "stages": stages, "tables": tables}
    result |= {
        "failed": {"racecheck": "exit\ncode 9"},
        "left_out": {"compiled": "no"},
        "seconds": 9,
    }
    gpu.write(tmp_path / "gpu-h200.json", result)
    return tmp_path


def test_tables_hold_every_row_and_what_is_missing(measured_run):
    runs = gpu_table.Gpu.read_all(measured_run)
    block = gpu_table.readme_block(runs)
    assert "NVIDIA H200" in block
    assert "| embed | linear, PyTorch fp32 | " in block
    assert "| static step, brainfast bf16, launched one by one | 50 |" in block
    assert "| vit + head, brainfast bf16 | tight | 500 | 1.1 | 2 |" in block
    page = gpu_table.document(runs)
    for row in (row for table in runs[0].values["tables"] for row in table["rows"]):
        assert f"| {row['form']}, {row['library']} {row['precision']} | {row['batch']} |" in page
    assert "Failed: racecheck: exit code 9" in page
    assert "Left out: compiled: no" in page
    for text in (block, page):
        heads = [line for line in text.splitlines() if line.startswith("|---")]
        assert len(heads) >= 2


def test_without_a_result_the_readme_says_so(tmp_path):
    assert gpu_table.Gpu.read_all(tmp_path) == []
    for text in (gpu_table.readme_block([]), gpu_table.document([])):
        assert "GPU figures are not measured yet" in text


def test_readme_and_page_hold_what_the_results_say():
    runs = gpu_table.Gpu.read_all(ROOT / "benchmarks" / "results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_table.between(readme, "gpu", gpu_table.readme_block(runs)) == readme
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.endswith(gpu_table.document(runs) + "\n")


def test_a_cpu_is_never_measured_for_the_results(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "part.json"
    monkeypatch.setattr(sys, "argv", ["gpu_stage.py", "embed", "--out", str(out)])
    with pytest.raises(SystemExit, match="no GPU"):
        gpu_stage.main()
    assert not out.exists()
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    with pytest.raises(SystemExit, match="expected an NVIDIA GPU"):
        gpu.main()
    assert not out.exists()
    assert np.isfinite(gpu_clock.seconds(CPU, lambda: None))
