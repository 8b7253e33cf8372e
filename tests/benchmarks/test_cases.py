from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfast.bench import compare as comparison
from brainfast.bench.compare import compare
from brainfast.errors import BrainfastError
from cases import QUICK, WHOLE, Case, chosen, tiny
from stages import open_stage

STAGES = {case.stage: case for case in (tiny(case) for case in reversed(WHOLE))}
STAGES["blobgpt, several subjects"] = next(
    tiny(case) for case in WHOLE if case.stage == "blobgpt" and case.S > 1
)


@pytest.fixture(scope="module", params=STAGES)
def stage(request, tmp_path_factory):
    return open_stage(STAGES[request.param], tmp_path_factory.mktemp(request.param), 1)


@pytest.fixture(scope="module")
def built(stage):
    return [form for _, build in stage.builders() for form in build()]


def spoilt(result, how):
    """The same answer, off in one number of one array, or off by a small factor."""
    if isinstance(result, tuple):
        return (spoilt(result[0], how), *result[1:])
    if isinstance(result, dict):
        name = sorted(result)[how % len(result)]
        return result | {name: spoilt(result[name], 0)}
    wrong = result.clone() if isinstance(result, torch.Tensor) else result.copy()
    if how == 0:
        wrong *= 1.5
    else:
        wrong[(-1,) * wrong.ndim] += 100 * abs(wrong).max()
    return wrong


def test_every_form_passes_its_reference_check_and_a_wrong_one_does_not(stage, built):
    for batch in stage_case(stage).batches:
        inputs = stage.inputs(batch)
        judge = stage.judge(inputs)
        for form in built:
            assert form.variants or form.problem
            for variant in form.variants.values():
                found = variant(*inputs)
                errors = judge(form, found)
                assert 0 < errors.rms <= errors.max
                for how in range(len(found) if isinstance(found, dict) else 2):
                    with pytest.raises(BrainfastError, match=r"expected .* error .*, got"):
                        judge(form, spoilt(found, how))


def test_a_wrong_form_is_refused_before_it_is_timed(stage, built, monkeypatch):
    right = next(form for form in built if form.variants)
    call = next(iter(right.variants.values()))
    wrong = replace(right, variants={"": lambda *inputs: spoilt(call(*inputs), 0)})
    monkeypatch.setattr(type(stage), "builders", lambda self: [("wrong", lambda: [wrong])])
    monkeypatch.setattr(comparison, "interleave", lambda *rest, **more: pytest.fail("was timed"))
    with pytest.raises(BrainfastError, match="expected"):
        compare(stage, stage_case(stage).batches[:1], 1, progress=False)


def test_ours_comes_first_and_a_stock_library_is_there(built):
    assert built[0].library == "brainfast"
    assert {form.library for form in built} & {"PyTorch", "ONNX Runtime"}


def test_forms_are_named_once(built):
    titles = [form.title for form in built]
    assert len(set(titles)) == len(titles)


def test_inputs_are_seeded(stage):
    for one, two in zip(stage.inputs(2), stage.inputs(2), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_training_step_moves_its_parameters_and_starts_again(tmp_path):
    stage = open_stage(STAGES["training"], tmp_path, 1)
    step = next(
        iter(form.variants.values())
        for _, build in stage.builders()
        for form in build()
        if form.name == "cell form" and form.variants
    )
    step = next(step)
    inputs = stage.inputs(3)
    first, second = (step(*inputs)["response"].clone() for _ in range(2))
    assert not torch.equal(first, second)
    again = step(*stage.inputs(3))["response"]
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_tiny_keeps_the_stage_and_every_whole_case_has_a_reference():
    for case in (*WHOLE, *QUICK):
        assert tiny(case).stage == case.stage
        assert set(case.listing1) <= set(case.batches)
        assert set(case.compiled) <= set(case.batches)
    assert len({(case.name, case.batches) for case in WHOLE}) == len(WHOLE)


def test_only_some_stages():
    assert {case.stage for case in chosen(WHOLE, ["image", "tokens"])} == {"image", "tokens"}
    assert chosen(WHOLE, []) == WHOLE
    with pytest.raises(SystemExit, match="--only: expected"):
        chosen(WHOLE, ["readouts"])


def test_sizes_asked_for_are_measured():
    readout = [case for case in WHOLE if case.stage == "readout"]
    assert {case.V for case in readout} == {9_496, 37_984, 327_684}
    assert {case.L for case in readout} == {12, 40}
    assert {case.D for case in readout} == {128, 512}
    assert {batch for case in readout for batch in case.batches} == {1, 8, 32}


def stage_case(stage) -> Case:
    return getattr(stage, "sizes", stage.case)
