"""The stage of a case: what `run.py`, the pytest-benchmark suite and the tests open."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from brainfast.bench.compare import Stage
from cases import Case
from ceilings import Work


class SuiteStage(Stage, Protocol):
    """A stage that also says how much work a call is."""

    def work(self, precision: str, batch: int) -> Work | None:
        """The least that a call must do; None where nobody counted."""
        ...


def open_stage(case: Case, folder: Path, threads: int) -> SuiteStage:
    """Make up what the case needs; exported models are written to `folder`."""
    if case.stage == "readout":
        from stage_readout import SuiteReadout as Opened
    elif case.stage == "tokens":
        from stage_tokens import TokensStage as Opened
    elif case.stage == "training":
        from stage_training import TrainingStage as Opened
    else:
        from stage_image import ImageStage as Opened
    return Opened.open(case, folder, threads)
