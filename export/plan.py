"""What is exported: which subjects, vertices or objectives of an encoder, checked before work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..card import Card, ParityCard
from ..encoder import Encoder, load
from ..errors import BrainfastError
from ..files import check_writable
from ..folded import FoldedFactorTopy
from ..folded_blobgpt import FoldedBlobGPT
from ..group_encoder import GroupEncoder
from ..heads import FoldedHead
from ..objective import Objective
from ..vertex_space import Selection, VertexSpace
from .about import OutputAbout, VerticesAbout
from .heads import BlobGPTHead, FactorTopyHead

AnyEncoder = Encoder | GroupEncoder
# What `objective.Objective` takes, a .npy file of weights [O,V], a list of these, or one of them
# for every subject by name.
Objectives = str | Path | Objective | NDArray[np.float32] | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """One output: the head and vertices of a subject, and the objectives on them, if any.

    columns: of the subject's vertices those that are kept; weights: [O,V] of objectives.
    """

    subject: str | None
    head: FoldedHead
    space: VertexSpace
    columns: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    objectives: tuple[str, ...]

    def expected(
        self,
        twin: NDArray[np.float64],  # [B,V], the float64 responses of the vertices that are kept
    ) -> NDArray[np.float64]:  # [B,V] or [B,O]
        """What the output should be."""
        return twin if self.weights is None else twin @ self.weights.T.astype(np.float64)


@dataclass(frozen=True)
class Plan:
    """The outputs of an export, each of one subject, and `what` they are in words.

    whole: all vertices of all that is asked for, and no objective.
    """

    encoder: AnyEncoder
    answers: tuple[Answer, ...]
    what: str
    whole: bool

    def outputs(self) -> tuple[OutputAbout, ...]:
        """How the file describes them: `response` or `scores`, with the subject where several."""
        kind = "response" if self.answers[0].weights is None else "scores"
        several = len(self.answers) > 1
        return tuple(
            OutputAbout(
                name=f"{kind}.{answer.subject}" if several else kind,
                subject=answer.subject,
                vertices=VerticesAbout.of(answer.space) if answer.weights is None else None,
                objectives=answer.objectives,
            )
            for answer in self.answers
        )

    def head(self) -> FactorTopyHead | BlobGPTHead:
        """The outputs as one torch module over the trunk's tokens."""
        heads = {str(answer.subject): answer.head for answer in self.answers}
        weights = {str(a.subject): a.weights for a in self.answers if a.weights is not None}
        first = self.answers[0]
        if isinstance(first.head, FoldedFactorTopy):
            return FactorTopyHead(first.head, first.weights)
        blobs = {name: head for name, head in heads.items() if isinstance(head, FoldedBlobGPT)}
        return BlobGPTHead(blobs, weights or None)


def open_encoder(model: str | Path | AnyEncoder) -> AnyEncoder:
    """An encoder, or the one in a model folder, whose card must be writable."""
    if not isinstance(model, str | Path):
        return model
    encoder = load(model)
    check_writable(Path(model))
    return encoder


def renew_card(
    model: str | Path | AnyEncoder, encoder: AnyEncoder, parity: Sequence[ParityCard]
) -> None:
    """Take the card of a model folder as it is by now, with the parity that was measured.

    Another process may have added to it since `open_encoder`. A folder that holds another model by
    now is a BrainfastError: the parity is not its own.
    """
    if not isinstance(model, str | Path):
        return
    card = Card.read(Path(model))
    if card.model_hash != encoder.card.model_hash:
        raise BrainfastError(
            str(model),
            expected=f"model {encoder.card.model_hash[:12]}, which the export began with",
            got=f"{card.model_hash[:12]} by now",
            remedy="export this model again",
        )
    encoder.card = card
    for row in parity:
        encoder.keep_parity(row)


def make_plan(
    encoder: AnyEncoder,
    subjects: Sequence[str] | None,
    vertices: Selection,
    objective: Objectives | None,
) -> Plan:
    """The outputs that were asked for; what does not exist is a BrainfastError."""
    if vertices is not None and objective is not None:
        raise BrainfastError(
            "export", expected="vertices or an objective", got="both", remedy="leave one out"
        )
    answers = []
    for subject, head in _heads(encoder, subjects).items():
        space = _space(encoder, subject)
        columns = space.select(vertices)
        weights, names = _objective(objective, subject, space)
        answers.append(
            Answer(subject, head.take(columns), space.take(columns), columns, weights, names)
        )
    whole = vertices is None and objective is None
    return Plan(encoder, tuple(answers), _in_words(vertices, answers), whole)


def _heads(encoder: AnyEncoder, subjects: Sequence[str] | None) -> Mapping[str | None, FoldedHead]:
    if isinstance(encoder, GroupEncoder):
        if subjects is not None and not subjects:
            raise BrainfastError("subjects", expected="at least one", got="none")
        found = encoder.fold(None if subjects is None else list(dict.fromkeys(subjects)))
        return dict(found.items())
    if subjects is not None:
        raise BrainfastError(
            "subject",
            expected="a model of several subjects",
            got=f"{encoder.card.model} of one",
            remedy="leave the subject out",
        )
    return {None: encoder.fold()}


def _space(encoder: AnyEncoder, subject: str | None) -> VertexSpace:
    if isinstance(encoder, GroupEncoder):
        return encoder.space_of(str(subject))
    return encoder.space


def _objective(
    objective: Objectives | None, subject: str | None, space: VertexSpace
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """Weights [O,V] on a subject's vertices, and the names of the objectives."""
    if objective is None:
        return None, ()
    if isinstance(objective, Mapping):
        if subject not in objective:
            raise BrainfastError(
                "objective",
                expected=f"weights for {subject}",
                got=f"only for {', '.join(objective)}",
            )
        objective = objective[str(subject)]
    if isinstance(objective, str | Path):
        objective = [objective]
    if isinstance(objective, Sequence):
        objective = [_read_if_file(term) for term in objective]
    found = Objective.of(objective)
    return found.weights(space), found.names


def _read_if_file(term: Any) -> Any:
    """The weights in a .npy file; an expression or weights as they are."""
    is_file = isinstance(term, Path) or (isinstance(term, str) and term.endswith(".npy"))
    return np.atleast_2d(_read_weights(Path(term))) if is_file else term


def _read_weights(path: Path) -> NDArray[Any]:
    try:
        weights: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrainfastError(
            str(path), expected="a .npy file of weights [O,V]", got=str(error).splitlines()[0]
        ) from error
    return weights


def _in_words(vertices: Selection, answers: Sequence[Answer]) -> str:
    if answers[0].objectives:
        return "scores of " + ", ".join(answers[0].objectives)
    if vertices is None:
        return "all vertices"
    named = [vertices] if isinstance(vertices, str) else list(vertices)
    if all(isinstance(name, str) for name in named):
        return ", ".join(map(str, named))
    return f"{sum(len(answer.columns) for answer in answers)} chosen vertices"
