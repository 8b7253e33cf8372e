"""The operands' rounding stays within the bar of each precision."""

from error_budget import CASES, errors


def test_operands_use_no_more_than_their_budget():
    bars = {"bf16x3": 1e-5, "bf16": 5e-3}
    for precision, bar in bars.items():
        (case,) = (case for case in CASES if case.endswith(f"({precision})"))
        rms, _ = errors(CASES[case])
        assert 0.1 * bar < rms < bar
