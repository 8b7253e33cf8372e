"""Every form by itself under pytest-benchmark: its statistics, to compare with an earlier run.

pytest benchmarks/ --benchmark-json=before.json
pytest benchmarks/ --benchmark-compare=before.json
"""

from __future__ import annotations

import time

import pytest

SLOW_S = 0.1
ROUNDS = 15
SLOW_ROUNDS = 3
MOST_FORMS = 16  # of a stage


@pytest.fixture(scope="module")
def built(stage):
    """The forms of a stage, built once for all of its tests."""
    return [form for _, build in stage.builders() for form in build()]


@pytest.fixture(scope="module")
def posed(stage, batch):
    """Inputs, and the judge of the answers to them."""
    inputs = stage.inputs(batch)
    return inputs, stage.judge(inputs)


@pytest.mark.parametrize("number", range(MOST_FORMS))
def test_form(benchmark, stage, built, posed, case, batch, number):
    if number >= len(built):
        pytest.skip("no more forms at this stage")
    form, (inputs, judge) = built[number], posed
    problem = form.problem or stage.problem(form, batch)
    if problem:
        pytest.skip(f"{form.title}: {problem}")
    name, call = next(iter(form.variants.items()))
    start = time.perf_counter()
    errors = judge(form, call(*inputs))
    slow = time.perf_counter() - start > SLOW_S
    benchmark.group = f"{case.name}-B{batch}"
    benchmark.name = f"{form.title} {name}".strip()
    benchmark.extra_info.update(rms_error=errors.rms, max_error=errors.max)
    rounds = SLOW_ROUNDS if slow else ROUNDS
    benchmark.pedantic(call, args=inputs, rounds=rounds, warmup_rounds=0 if slow else 2)
