"""What every folded head can do, whatever model it came from, and how one is read from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from numpy.typing import NDArray

from .errors import BrainfastError
from .files import load_tensors
from .folded import Array, FoldedFactorTopy, Precision
from .folded_blobgpt import GROUP, FoldedBlobGPT, read_blobgpt
from .tokens import Tokens

if TYPE_CHECKING:
    from .card import Card

FOLDED_FILE = "folded.safetensors"


class FoldedHead(Protocol):
    """Raw trunk tokens -> response, in constants.

    align takes the tokens to what the readout sees of them (AlignedTokens, Latent), readout from
    there to the response [B,V]; run is both. template folds objectives [O,V] on the response onto
    the aligned tokens; take gives the same head for some of its vertices.
    """

    @property
    def V(self) -> int: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def precision(self) -> Precision: ...
    def align(self, tokens: Tokens) -> Any: ...
    def readout(self, aligned: Any) -> Array: ...
    def run(self, tokens: Tokens) -> Array: ...
    def template(self, weights: Array) -> Any: ...
    def take(self, vertices: Sequence[int] | NDArray[Any]) -> Self: ...
    def with_precision(self, precision: Precision) -> Self: ...
    def contributions(self, tokens: Tokens, by: Literal["layer", "scale"]) -> Array: ...


def read_head(folder: Path, card: Card) -> FoldedFactorTopy:
    """The folded head of a model of one subject, checked against its card."""
    from .card import HeadCard  # and with it pydantic, which a head in memory does without

    path = folder / FOLDED_FILE
    if not isinstance(card.head, HeadCard):
        raise BrainfastError(
            str(folder),
            expected="a model of one subject",
            got=f"{card.model} of {', '.join(card.subjects)}",
            remedy="name the subject",
        )
    head = FoldedFactorTopy.from_arrays(
        load_tensors(path),
        name=str(path),
        layers=card.trunk.layers,
        grid=card.head.grid,
        samples=card.head.samples,
        pool_space=card.head.pool_space,
    )
    _check(path, card, head, card.space.vertices)
    return head


def read_heads(folder: Path, card: Card, subjects: Sequence[str]) -> Mapping[str, FoldedBlobGPT]:
    """Folded heads of some subjects of a model of several; "group" is one of them."""
    from .card import BlobHeadCard

    path = folder / FOLDED_FILE
    if not isinstance(card.head, BlobHeadCard):
        raise BrainfastError(
            str(folder),
            expected="a model of several subjects",
            got=f"{card.model} of {card.space.subject or 'one subject'}",
            remedy="leave the subject out",
        )
    known = (*card.subjects, GROUP)
    for subject in subjects:
        if subject not in known:
            raise BrainfastError(
                "subject", expected=f"one of {', '.join(known)}", got=repr(subject)
            )
    prefixes = tuple(f"subject.{subject}." for subject in subjects)
    heads = read_blobgpt(
        load_tensors(
            path, lambda name: not name.startswith("subject.") or name.startswith(prefixes)
        ),
        name=str(path),
        layers=card.trunk.layers,
        grids=card.head.grids,
        class_token=card.head.class_token,
        subjects=subjects,
    )
    for subject, head in heads.items():
        space = card.space if subject == GROUP else card.subjects[subject]
        _check(path, card, head, space.vertices)
    return heads


def _check(path: Path, card: Card, head: FoldedHead, vertices: int) -> None:
    if vertices != head.V or head.channels != card.trunk.channels:
        raise BrainfastError(
            str(path),
            expected=f"{vertices} vertices and channels {card.trunk.channels}",
            got=f"{head.V} and {head.channels}",
            remedy="the file belongs to another model; copy the whole folder again",
        )
