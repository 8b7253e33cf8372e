"""The closed loop: the next stimulus inside an experiment, its log, and its rehearsal."""

from .candidates import ArrayCandidates, Candidates, FoldedObjective
from .choice import Choice
from .log import read_log
from .measured import project
from .replay import Replayed, replay
from .session import Session

__all__ = [
    "ArrayCandidates",
    "Candidates",
    "Choice",
    "FoldedObjective",
    "Replayed",
    "Session",
    "project",
    "read_log",
    "replay",
]
