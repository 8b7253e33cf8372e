from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfast import _C, bench, forms, timing
from brainfast.bench import compare, readout
from brainfast.bench.check import response_judge
from brainfast.cells import grid_cells
from brainfast.errors import BrainfastError
from brainfast.forms import Form


@pytest.fixture(scope="module")
def case():
    """A small case with selectors on the edge of the image and beyond it."""
    made = bench.readout_case(None, vertices=300, layers=3, dim=20)
    space = made.head.space.copy()
    space[:8] = [(-1, -1), (1, 1), (0.999, -0.999), (0, 0), (-3, 0), (0, 40), (0.125, 1), (1, 0)]
    return replace(made, head=replace(made.head, space=space))


@pytest.fixture(scope="module")
def built(case, tmp_path_factory):
    """Every form, exported once for the whole file."""
    folder = tmp_path_factory.mktemp("exports")
    return [
        *forms.brainfast_forms(case.head),
        *forms.torch_cell_forms(case.head),
        forms.onnx_cell_form(case.head, folder, 1),
        forms.torch_listing1_form(case.head),
        forms.onnx_listing1_form(case.head, folder, 1, 5),
    ]


@pytest.fixture(scope="module")
def quick(built):
    """bench_readout takes the exported forms of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "onnx_cell_form", lambda *rest: built[-3])
        patch.setattr(forms, "onnx_listing1_form", lambda *rest: built[-1])
        yield partial(bench.bench_readout, threads=1, progress=False)


@pytest.fixture(scope="module")
def table(case, quick):
    return quick(case, batches=(1, 3), rounds=3)


def readout_by_hand(case, tokens):
    """The readout in float64, pixel by pixel."""
    head = case.head
    images, layers, dim, height, width = tokens.local.shape
    space, layer, scale, weight, bias = (
        array.astype(np.float64)
        for array in (head.space, head.layer, head.scale, head.weight, head.bias)
    )
    padded = np.zeros((images, layers, dim, height + 2, width + 2))
    padded[..., 1:-1, 1:-1] = tokens.local
    out = np.empty((images, head.V))
    for v in range(head.V):
        x, y = ((space[v] + 1) * (width, height) - 1) / 2
        left, top = int(np.floor(x)), int(np.floor(y))
        sampled = np.zeros((images, layers, dim))
        for row in (top, top + 1):
            for column in (left, left + 1):
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                if -1 <= row <= height and -1 <= column <= width:
                    sampled += share * padded[..., row + 1, column + 1]
        mixed = (1 - scale[v]) * sampled + scale[v] * tokens.global_
        out[:, v] = (np.einsum("bld,l->bd", mixed, layer[v]) * weight[v]).mean(axis=1) + bias[v]
    return out


def test_twin_in_chunks_is_the_readout_by_hand(case, monkeypatch):
    tokens = case.tokens(2)
    expected = readout_by_hand(case, tokens)
    np.testing.assert_allclose(readout.twin(case.head, tokens), expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(readout, "_TWIN_BYTES", 8 * 5 * 2 * 3 * 7)
    np.testing.assert_allclose(readout.twin(case.head, tokens), expected, rtol=1e-10, atol=1e-12)


def test_every_variant_of_every_form_agrees_with_the_readout_by_hand(case, built):
    for batch in (1, 5):  # exported with a batch of 2
        tokens = case.tokens(batch)
        expected = readout_by_hand(case, tokens)
        spread = (expected - case.head.bias).std()
        for form in built:
            bar = {"bf16": 5e-2, "bf16x3": 1e-4}.get(form.precision, 1e-5)
            for name, variant in form.variants.items():
                found = variant(tokens.local, tokens.global_)
                assert found.dtype == np.float32
                assert found.shape == (batch, 300)
                assert np.abs(found - expected).max() < bar * spread, (form.title, name)


@pytest.mark.parametrize("block", [1, 7, 32, None])
def test_cell_form_in_blocks_of_any_size_and_several_parts(case, block, monkeypatch):
    monkeypatch.setattr(forms, "_PART_BYTES", 4 * 15 * 7 * 4)
    tokens = case.tokens(2)
    found = forms.torch_call(forms.CellReadout(case.head, block))(tokens.local, tokens.global_)
    np.testing.assert_allclose(found, readout_by_hand(case, tokens), atol=1e-5)


def test_a_grid_that_is_one_pixel_or_not_square(case):
    for grid in ((1, 1), (3, 5)):
        other = replace(case, head=replace(case.head, grid=grid))
        tokens = other.tokens(2)
        expected = readout_by_hand(other, tokens)
        for block in (32, None):
            call = forms.torch_call(forms.CellReadout(other.head, block))
            np.testing.assert_allclose(
                call(tokens.local, tokens.global_), expected, atol=1e-5, err_msg=str(grid)
            )


def test_vertices_of_a_cell_read_the_same_pixels(case):
    corners, cell = grid_cells(case.head)
    assert cell.shape == (300,)
    assert corners[cell[3]].tolist() == [27, 28, 35, 36]  # (0, 0) lies between the middle four
    assert corners[cell[0]].tolist() == [64, 64, 64, 0]  # top left: only its own pixel is inside
    assert (corners[cell[5]] == 64).all()  # far outside
    assert len(np.unique(corners, axis=0)) <= len(corners) <= 10 * 10


def test_table_has_every_form_at_every_batch(table):
    titles = [(row.form, row.library, row.precision) for row in table.rows if row.batch == 3]
    assert titles == [
        ("compiled head", "brainfast", "fp32"),
        ("compiled head", "brainfast", "bf16"),
        ("compiled head", "brainfast", "bf16x3"),
        ("cell form", "PyTorch", "fp32"),
        ("cell form", "PyTorch", "bf16"),
        ("cell form", "ONNX Runtime", "fp32"),
        ("Listing 1", "PyTorch", "fp32"),
        ("Listing 1", "ONNX Runtime", "fp32"),
    ]
    assert {row.batch for row in table.rows} == {1, 3}
    for row in table.rows:
        assert row.rounds == 3
        assert 0 < row.best_ms <= row.median_ms <= row.p99_ms
        bar = {"bf16": 5e-2, "bf16x3": 1e-4}.get(row.precision, 1e-5)
        assert row.rms_error <= row.max_error < bar
        assert row.rms_error > 0
    assert [row.ratio for row in table.rows if row.library == "brainfast"][::3] == [1.0, 1.0]


def test_json_round_trip(table):
    text = json.dumps(table.as_json(), allow_nan=False)
    assert bench.BenchTable.from_json(json.loads(text)) == table
    assert table.machine["threads"] == 1
    assert table.machine["isa"] in _C.supported_isas()
    assert table.case == {"name": "made-up selectors", "V": 300, "L": 3, "D": 20, "H": 8, "W": 8}


def test_printed_table_has_a_line_a_form(table, capsys):
    bench.print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("1 ", "3 ")) for line in lines) == len(table.rows)
    assert any("V=300" in line for line in lines)


def test_busy_machine_is_told(table, capsys):
    bench.print_table(replace(table, machine=table.machine | {"busy_elsewhere": 1.0}))
    assert "other processes kept 1.0 cores busy" in capsys.readouterr().out
    bench.print_table(replace(table, machine=table.machine | {"busy_elsewhere": 0.0}))
    assert "other processes" not in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["scaled", "one vertex", "nan", "shape"])
def test_a_wrong_form_is_refused_before_it_is_timed(case, monkeypatch, wrong):
    right = forms.torch_call(forms.CellReadout(case.head, 32))

    def call(local, global_):
        result = right(local, global_).copy()
        if wrong == "scaled":
            result *= np.float32(1.001)
        elif wrong == "one vertex":
            result[:, 17] += 1e-3
        elif wrong == "nan":
            result[0, 3] = np.nan
        else:
            result = result[:, :-1]
        return result

    form = Form("cell form", "PyTorch", "fp32", {"right": right, "wrong": call})
    monkeypatch.setattr(forms, "torch_cell_forms", lambda head: [form])
    monkeypatch.setattr(forms, "onnx_cell_form", lambda *rest: form)
    monkeypatch.setattr(compare, "interleave", lambda *rest, **more: pytest.fail("was timed"))
    with pytest.raises(BrainfastError, match=r"cell form, PyTorch fp32: expected .*, got"):
        bench.bench_readout(case, batches=(2,), include_listing1=False, threads=1, progress=False)


def test_bf16_has_a_bar_of_its_own():
    expected = np.random.default_rng(0).standard_normal((4, 50))
    bias = np.zeros(50, dtype=np.float32)
    off = (expected * 1.002).astype(np.float32)
    judge = response_judge(expected, bias)
    errors = judge(Form("f", "l", "bf16", {}), off)
    assert errors.rms == pytest.approx(0.002, rel=0.05)
    assert errors.max > errors.rms
    with pytest.raises(BrainfastError, match="max error"):
        judge(Form("f", "l", "fp32", {}), off)
    with pytest.raises(BrainfastError, match="rms error"):
        judge(Form("f", "l", "bf16", {}), off * np.float32(1.01))


def test_error_is_measured_against_the_response_without_its_bias():
    expected = np.array([[0.0, 100.0], [1.0, 101.0]])
    bias = np.array([0.0, 100.0], dtype=np.float32)
    found = (expected + 1e-3).astype(np.float32)
    form = Form("f", "l", "bf16", {})
    assert response_judge(expected, bias)(form, found).rms == pytest.approx(2e-3, rel=0.02)


def test_listing1_that_does_not_fit_is_a_row_with_the_reason(case, quick, monkeypatch):
    needed = 4 * 5 * 300 * 3 * 20
    assert forms.listing1_bytes(case.head, 1) == needed
    monkeypatch.setattr(readout, "available_memory", lambda: 2 * needed)
    table = quick(case, batches=(1, 2), rounds=1)
    listing1 = [row for row in table.rows if row.form == "Listing 1"]
    assert [row.median_ms is None for row in listing1] == [False, False, True, True]
    assert "needs about" in listing1[2].note
    assert "are free" in listing1[3].note
    json.dumps(table.as_json(), allow_nan=False)


def test_listing1_can_be_left_out(case, quick):
    table = quick(case, batches=(1,), rounds=1, include_listing1=False)
    assert {row.form for row in table.rows} == {"compiled head", "cell form"}


def test_every_round_runs_each_call_once_in_rotated_order(monkeypatch):
    monkeypatch.setattr(timing, "_PRIME_S", 0.0)
    ran = []
    calls = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    seconds = timing.interleave(calls, 4, after_round=lambda: ran.append("|"))
    rounds = "".join(ran)[3:].split("|")[:-1]  # after one warm-up of each
    assert rounds == ["aabbcc", "bbccaa", "ccaabb", "aabbcc"]  # untimed, then timed
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert all((values >= 0).all() for values in seconds.values())


def test_a_slow_call_sits_out_rounds():
    now = [0.0]
    ran = []

    def run(name, seconds):
        ran.append(name)
        now[0] += seconds

    calls = {"quick": lambda: run("quick", 0.05), "slow": lambda: run("slow", 2.5)}
    seconds = timing.interleave(calls, 12, clock=lambda: now[0])
    timed = np.flatnonzero(~np.isnan(seconds["slow"]))
    assert timed.tolist() == [0, 3, 6, 9]  # 10 s in all
    assert ran.count("slow") == 1 + 4  # never primed
    np.testing.assert_allclose(seconds["slow"][timed], 2.5)
    np.testing.assert_allclose(seconds["quick"], 0.05)


def test_known_seconds_spare_the_first_run_and_a_very_slow_call_runs_twice():
    now, ran = [0.0], []

    def run():
        ran.append(now[0])
        now[0] += 9.0

    seconds = timing.interleave(
        {"slow": run}, 10, known={"slow": 9.0}, budget_s=10.0, clock=lambda: now[0]
    )
    assert len(ran) == np.isfinite(seconds["slow"]).sum() == 2


def test_ratios_compare_equal_precision_round_by_round(table):
    titles = {(row.form, row.library, row.precision): row for row in table.rows if row.batch == 1}
    ours = {row.precision: row for key, row in titles.items() if key[1] == "brainfast"}
    for (_, library, precision), row in titles.items():
        measure = ours["fp32" if library == "brainfast" else precision]
        assert row.yardstick == f"compiled head, brainfast {measure.precision}"
        assert row.ratio == pytest.approx(row.best_ms / measure.best_ms)
        assert row.round_ratio > 0
    assert ours["fp32"].round_ratio == 1.0


def test_a_form_with_a_problem_is_a_row_with_a_note():
    row = compare.first_row(Form("f", "l", "fp32", {}, problem="does not compile"), 3)
    assert (row.note, row.batch, row.best_ms) == ("does not compile", 3, None)


def test_threads_are_restored_after_an_error():
    before = torch.get_num_threads(), _C.num_threads()

    def fail_inside():
        with timing.using_threads(1):
            assert (torch.get_num_threads(), _C.num_threads()) == (1, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert (torch.get_num_threads(), _C.num_threads()) == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_growth_sees_memory_that_is_freed_again():
    result, growth = timing.with_peak_growth(lambda: np.ones(1 << 25, np.uint8).sum())
    assert result == 1 << 25
    assert growth is None or 0.9 * (1 << 25) < growth < 4 * (1 << 25)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"rounds": 0}, "rounds"), ({"batches": (1, 0)}, "batch"), ({"threads": 0}, "threads")],
)
def test_bad_numbers_are_named(case, arguments, name):
    with pytest.raises(BrainfastError, match=f"^{name}: expected 1 or more, got 0"):
        bench.bench_readout(case, progress=False, **arguments)


@pytest.mark.parametrize("name", ["vertices", "layers", "dim"])
def test_bad_sizes_are_named(name):
    with pytest.raises(BrainfastError, match=f"^{name}: expected 1 or more, got 0"):
        bench.readout_case(None, **{name: 0})


def test_made_up_case_is_seeded_and_retinotopic():
    sizes = {"vertices": 4000, "layers": 5, "dim": 4}
    one, two = (bench.readout_case(None, **sizes) for _ in range(2))
    np.testing.assert_array_equal(one.head.space, two.head.space)
    np.testing.assert_array_equal(one.tokens(2).local, two.tokens(2).local)
    other = bench.readout_case(None, **sizes, seed=1)
    assert not np.array_equal(one.head.space, other.head.space)
    head = one.head
    assert np.abs(head.space).max() <= 1
    assert (head.space[:2000, 0] >= 0).all()  # left hemisphere, right visual field
    assert (head.space[2000:, 0] <= 0).all()
    np.testing.assert_allclose(head.layer.sum(axis=1), 1, rtol=1e-5)
    counts = np.bincount(grid_cells(head)[1])
    assert counts.max() > 5 * np.median(counts)  # most of cortex looks at the centre


def test_rows_of_several_samples_are_read_out_one_by_one(case):
    two = bench.ReadoutCase("two samples", replace(case.head, samples=2, precision="bf16"))
    assert (two.head.samples, two.head.V, two.head.precision) == (1, 300, "fp32")
