"""Options and the opened stage of the pytest-benchmark suite."""

from __future__ import annotations

import pytest
import torch

from brainfast.timing import using_threads
from cases import QUICK, WHOLE, Case
from stages import open_stage


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole`: every case of `cases.WHOLE`, not those of `cases.QUICK`."""
    parser.addoption("--whole", action="store_true", help="all sizes (default: the quick ones)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case and batch size."""
    if "case" in metafunc.fixturenames:
        cases = WHOLE if metafunc.config.getoption("whole") else QUICK
        chosen = [(case, batch) for case in cases for batch in case.batches]
        names = [f"{case.name}-B{batch}" for case, batch in chosen]
        metafunc.parametrize(("case", "batch"), chosen, ids=names, scope="module")


@pytest.fixture(scope="module")
def stage(case: Case, tmp_path_factory: pytest.TempPathFactory):
    """The stage of a case, with every thread that torch would take."""
    threads = torch.get_num_threads()
    with using_threads(threads):
        yield open_stage(case, tmp_path_factory.mktemp(case.name), threads)
