"""The stage of a case: what `run.py`, the pytest-benchmark suite and the tests open."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

from brainfast.bench.compare import Stage
from cases import Case, StageName
from ceilings import Work

_CLASSES: dict[StageName, tuple[str, str]] = {
    "readout": ("stage_readout", "SuiteReadout"),
    "tokens": ("stage_tokens", "TokensStage"),
    "training": ("stage_training", "TrainingStage"),
    "image": ("stage_image", "ImageStage"),
    "projection": ("stage_projection", "ProjectionStage"),
    "embed": ("stage_embed", "EmbedStage"),
    "blobgpt": ("stage_blobgpt", "BlobStage"),
    "phase1": ("stage_phase1", "Phase1Stage"),
    "topk": ("stage_topk", "TopkStage"),
}


class SuiteStage(Stage, Protocol):
    """A stage that also says how much work a call is."""

    def work(self, precision: str, batch: int) -> Work | None:
        """The least that a call must do; None where nobody counted."""
        ...


def open_stage(case: Case, folder: Path, threads: int) -> SuiteStage:
    """Make up what the case needs; exported models are written to `folder`."""
    module, name = _CLASSES[case.stage]
    stage: SuiteStage = getattr(import_module(module), name).open(case, folder, threads)
    return stage
