from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ceilings
import plots
import readme_table
import run
from brainfast.bench.made_up import made_up_head
from brainfast.bench.readout import ReadoutStage
from brainfast.files import write_json
from cases import Case
from measured import BASE, Measured
from stage_readout import SuiteReadout


def quick_builders(stage):
    """Nothing that needs an export."""
    return ReadoutStage.builders(stage)[:2]


@pytest.fixture(scope="module")
def result():
    """A real run of the smallest kind, said to be of the usual sizes."""
    case = Case("readout", (1, 8), V=120, L=2, D=16)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_SIDE": 64, "_DRAM_BYTES": 1 << 20, "_ROUNDS": 2}.items():
            patch.setattr(ceilings, name, value)
        patch.setattr(SuiteReadout, "builders", quick_builders)
        found = run.measure([case], rounds=2, threads=1, budget_s=1.0, progress=False)
    found["tables"][0]["case"].update(BASE)
    return found


@pytest.fixture
def measured(result, tmp_path):
    write_json(tmp_path / "cpu.json", {"quick": True, **result})
    return Measured.read(tmp_path / "cpu.json")


def test_rows_carry_rates_ratios_and_bars(result):
    json.dumps(result, allow_nan=False)
    rows = result["tables"][0]["rows"]
    assert {row["batch"] for row in rows} == {1, 8}
    for row in rows:
        assert row["best_ms"] <= row["median_ms"] <= row["p99_ms"]
        assert row["gflop_per_s"] > 0
        assert row["gbyte_per_s"] > 0
        assert row["of_ceiling"] > 0
        if row["library"] != "brainfast":
            assert row["yardstick"] == f"compiled head, brainfast {row['precision']}"
    assert all(value > 0 for value in result["ceilings"].values())


def test_readme_has_a_line_a_form(measured):
    lines = readme_table.readme_block(measured).splitlines()
    forms = {(row.form, row.library, row.precision) for _, row in measured.of_stage("readout")}
    assert sum(line.startswith("| readout |") for line in lines) == len(forms)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_document_has_every_row_and_the_reason_of_one_that_was_not_run(measured):
    table = measured.tables[0]
    skipped = replace(
        table.rows[0],
        form="Listing 1",
        best_ms=None,
        median_ms=None,
        p99_ms=None,
        ratio=None,
        round_ratio=None,
        rms_error=None,
        max_error=None,
        peak_memory_bytes=None,
        gflop_per_s=None,
        gbyte_per_s=None,
        of_ceiling=None,
        note="needs about 61.0 GiB",
    )
    tables = (replace(table, rows=(*table.rows, skipped)),)
    text = readme_table.document(replace(measured, tables=tables))
    assert "needs about 61.0 GiB |" in text
    rows = [line for line in text.splitlines() if ", brainfast " in line or ", PyTorch " in line]
    assert len(rows) == len(table.rows) + 1
    assert {line.count("|") for line in rows} == {17}


def test_heads_are_held_against_the_best_stock_form_of_their_precision(measured):
    table = measured.tables[0]
    ours, bf16 = (row for row in table.rows[:2])
    rows = [replace(ours, best_ms=2.0, batch=1), replace(bf16, best_ms=1.0, batch=1)]
    for library, precision, best in (("A", "fp32", 9.0), ("B", "fp32", 5.0), ("C", "bf16", 4.0)):
        rows.append(replace(rows[0], library=library, precision=precision, best_ms=best))
    case = {"stage": "blobgpt", "S": 1}
    heads = replace(measured, tables=(replace(table, case=case, rows=tuple(rows)),))
    lines = [line for line in readme_table.readme_block(heads).splitlines() if "BlobGPT" in line]
    assert "| 2 / 5 (compiled head, B) |" in lines[0]
    assert "| 1 / 4 (compiled head, C) |" in lines[1]
    assert len(lines) == 2


def test_a_case_without_a_table_is_in_the_document_with_its_reason(measured):
    text = readme_table.document(replace(measured, missing={"readout-V9": "needs about 61.0 GiB"}))
    assert "- readout-V9: needs about 61.0 GiB" in text


@pytest.mark.parametrize("draw", [plots.latency, plots.cost_over_v])
def test_plots_are_pictures(measured, tmp_path, draw):
    draw(measured, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_result_without_the_readout_has_a_document_and_no_plots(measured, tmp_path):
    nothing = replace(measured, tables=())
    assert "# Benchmarks" in readme_table.document(nothing)
    assert readme_table.readme_block(nothing)
    for draw in (plots.latency, plots.cost_over_v):
        draw(nothing, tmp_path / "plot.png")
    assert not list(tmp_path.glob("*.png"))


def test_labels_keep_their_order_and_distance():
    placed = plots._apart(np.array([0.1, 0.1, 0.1, 0.5, 0.51, 0.9]))
    assert (np.diff(placed) >= plots._GAP - 1e-9).all()
    assert abs(placed[-1] - 0.9) < 0.1
    np.testing.assert_allclose(plots._apart(np.array([0.2, 0.6])), [0.2, 0.6])


def test_work_of_a_readout_counted_by_hand():
    head = made_up_head(3, 2, 5, grid=(4, 4))
    space = np.array([[0.0, 0.0], [-1.0, -1.0], [9.0, 9.0]], dtype=np.float32)
    head = replace(head, space=space)  # reads 4, 1 and 0 pixels, and the global token each
    work = ceilings.readout_work(head, 7, "fp32")
    assert work.flops == 2 * 7 * 5 * 2 * ((4 + 1) + (1 + 1) + (0 + 1))
    parameters = 3 * (4 * 5 + 4 * (2 + 4))
    assert work.bytes == parameters + 4 * 7 * 2 * 5 * 17 + 4 * 7 * 3
    halved = ceilings.readout_work(head, 7, "bf16")
    assert work.bytes - halved.bytes == 3 * 2 * 5


def test_work_of_blobgpt_counted_by_hand():
    case = Case("blobgpt", (1,), V=10, L=2, C=3, K=5, R=4, raw=1, S=1)  # T = 2
    projection = 2 * 7 * 2 * 5 * 2 * (3 + 1)
    assert ceilings.projection_work(case, 7, "fp32").flops == projection
    embed = ceilings.embed_work(case, 7, "bf16")
    assert (embed.flops, embed.bytes) == (2 * 7 * 50, 2 * 50 + 4 * 10 + 4 * 7 * (5 + 10))
    assert ceilings.blobgpt_work(case, 7, "fp32").flops == projection + 2 * 7 * 50
    few = replace(case, R=1, S=2)  # unfolded is less: maps (2 + 1) * 5, embedding 2 * 10
    assert ceilings.blobgpt_work(few, 7, "fp32").flops == projection + 2 * 7 * (15 + 20)
    step = ceilings.phase1_work(case, 7).flops
    assert step == 3 * projection + 3 * 2 * 7 * 2 * 20 + 2 * 2 * 7 * 40


def test_work_of_a_choice_counted_by_hand():
    case = Case("topk", (1,), N=10, F=3)
    work = ceilings.topk_work(case, 7, "fp32")
    assert (work.flops, work.bytes) == (2 * 7 * 30, 4 * 30 + 4 * 7 * 3)
    assert work.bytes - ceilings.topk_work(case, 7, "bf16").bytes == 2 * 30


def test_share_of_the_roofline():
    at_best = {"fma_gflop_per_s": 100.0, "matmul_bf16_gflop_per_s": 300.0}
    at_best |= {"l3_gbyte_per_s": 50.0, "dram_gbyte_per_s": 10.0}
    assert ceilings.share(ceilings.Work(1e9, 1e3), 0.02, "fp32", at_best) == pytest.approx(0.5)
    assert ceilings.share(ceilings.Work(1e9, 1e3), 0.02, "bf16", at_best) == pytest.approx(1 / 6)
    assert ceilings.share(ceilings.Work(1e3, 1e9), 0.2, "fp32", at_best) == pytest.approx(0.5)
