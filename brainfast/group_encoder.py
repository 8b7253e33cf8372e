"""An encoder of several subjects: trunk, BlobGPT head, vertex spaces, and their folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .analysis.scores import Scores
from .card import CARD_FILE, BlobHeadCard, Card, ParityCard, TrainingCard
from .data.basis import Basis
from .data.splits import Split
from .encoder_parts import (
    GOLDEN_VERTICES,
    MODEL_FILE,
    check_split,
    compile_trunk,
    golden_images,
    model_hash,
    score_card,
    score_split,
    space_card,
)
from .engine import ONNX_FILE, TRUNK_FILE, VERTICES_FILE, read_space
from .errors import BrainfastError
from .files import atomic_folder, load_tensors, save_tensors
from .folded import Precision
from .folded_blobgpt import GROUP, FoldedBlobGPT
from .golden import Golden
from .group_engine import GroupEngine, in_precision
from .heads import FOLDED_FILE
from .models.registry import model_class
from .parity import compare
from .response import Response
from .trunk_export import export_trunk
from .trunks import Trunk
from .vertex_space import Selection, VertexSpace

BASIS_FILE = "basis.safetensors"


@dataclass
class GroupEncoder:
    """A trained model of several subjects.

    spaces: the vertices of every subject; space: their union, for which "group" answers without
    any subject's own map. `history` is the training curve.
    """

    trunk: Trunk
    head: Any
    spaces: dict[str, VertexSpace]
    space: VertexSpace
    card: Card
    goldens: dict[str, Golden]
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def assemble(
        cls,
        *,
        model: str,
        trunk: Trunk,
        head: Any,
        spaces: Mapping[str, VertexSpace],
        space: VertexSpace,
        images: Sequence[Any],
        training: TrainingCard | None = None,
        visual_angle_deg: float | None = None,
        history: list[dict[str, float]] | None = None,
    ) -> GroupEncoder:
        """Make the card and the golden responses, to a few `images`, of a head that is ready."""
        head = head.eval()
        config = trunk.current_config()
        trunk = Trunk(trunk.model, config)
        card = Card(
            model=model,
            brainfast_version=version("brainfast"),
            trunk=config,
            head=BlobHeadCard(
                grids=head.config.grids,
                class_token=head.config.class_token,
                options=head.config.model_dump(mode="json"),
            ),
            space=space_card(space, visual_angle_deg=visual_angle_deg),
            subjects={
                name: space_card(own, visual_angle_deg=visual_angle_deg)
                for name, own in spaces.items()
            },
            training=training,
            model_hash="",
        )
        encoder = cls(trunk, head, dict(spaces), space, card, {}, history or [])
        about = [head.config.model_dump(mode="json"), {n: s.hash() for n, s in spaces.items()}]
        arrays = encoder._trained_arrays() | encoder._basis_arrays()
        digest = model_hash(arrays, trunk, space, about)
        encoder.card = card.model_copy(update={"model_hash": digest})
        encoder.goldens = encoder._make_goldens(golden_images(trunk, images))
        return encoder

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose maps it has, in their order."""
        return tuple(self.spaces)

    def space_of(self, subject: str) -> VertexSpace:
        """The vertices that a subject, or "group", is answered for."""
        self.head.subject_index(subject)
        return self.space if subject == GROUP else self.spaces[subject]

    @torch.no_grad()
    def respond(self, images: Any, subject: str, *, batch_size: int = 16) -> Response:
        """Responses [B,V_s] in z units through torch alone: the readable way, not the fast one."""
        parts = list(self._predict(images, subject, batch_size))
        return Response(np.concatenate(parts), self.space_of(subject))

    def evaluate(
        self, split: Split, subject: str, *, batch_size: int = 16, progress: bool = True
    ) -> Scores:
        """Scores of one subject's split, per vertex; their means go into the card.

        subject: whose map predicts; "group" predicts without one. The split is any subject's.
        """
        measured_in = split.space
        owner = self._name_of(measured_in.subject) if subject == GROUP else subject
        if owner in self.spaces:
            check_split(split, self.space_of(owner), self._known_hash(owner, split))
        columns = np.arange(measured_in.V)
        if subject == GROUP:
            columns = self.space.positions(measured_in)
        predicted = (part[:, columns] for part in self._predict(split.images, subject, batch_size))
        scores = score_split(predicted, split, self.card.model_hash, progress=progress)
        kept = f"{GROUP}/{owner}" if subject == GROUP and owner else subject
        card = score_card(split.name, scores, kept)
        others = [old for old in self.card.scores if (old.split, old.subject) != (card.split, kept)]
        self.card = self.card.model_copy(update={"scores": (*others, card)})
        return scores

    def fold(self, subjects: Sequence[str] | None = None) -> dict[str, FoldedBlobGPT]:
        """Heads of some subjects as constants, all without; they share one projection."""
        projection = self.head.fold()
        return {
            subject: self.head.fold_subject(subject, self._columns(subject), projection)
            for subject in (self.subjects if subjects is None else subjects)
        }

    def compile(
        self,
        *,
        subjects: Sequence[str] | None = None,
        device: str = "auto",
        precision: Precision = "fp32",
        trunk_precision: Literal["fp32", "bf16"] = "fp32",
        vertices: Selection = None,
        runtime: str = "torch",
        folder: str | Path | None = None,
        threads: int | None = None,
    ) -> GroupEngine:
        """Fold some subjects (all without), pack them, and check the golden responses.

        The other arguments are those of `Encoder.compile`.
        """
        opened = compile_trunk(self.trunk, runtime, device, trunk_precision, folder, threads)
        heads = in_precision(self.fold(subjects), precision)
        spaces = {subject: self.space_of(subject) for subject in heads}
        engine = GroupEngine(opened, heads, spaces, self.card)
        engine.check(self.goldens)
        return engine.take(vertices)

    def twin(
        self, images: Any, subject: str, vertices: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Responses [B,V_s] unfolded in float64 on the trunk's fp32 tokens: the yardstick."""
        columns = self._columns(subject)
        columns = columns if vertices is None else columns[vertices]
        head = self._head_in_float64()
        response: NDArray[np.float64] = head.twin(self._twin_latent(head, images), subject, columns)
        return response

    def twins(self, images: Any, subjects: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """`twin` of some subjects, from one pass of the trunk and one latent."""
        columns = {subject: self._columns(subject) for subject in subjects}
        head = self._head_in_float64()
        latent = self._twin_latent(head, images)
        return {subject: head.twin(latent, subject, own) for subject, own in columns.items()}

    def _head_in_float64(self) -> Any:
        return copy.deepcopy(self.head).cpu().double().eval()

    def _twin_latent(self, head: Any, images: Any) -> torch.Tensor:  # [B,K]
        features = self.trunk.features(images, 1)
        return torch.cat([head.twin_latent(t.map(lambda a: a.cpu().double())) for t in features])

    def parity(self, engine: GroupEngine, images: Any, subject: str) -> ParityCard:
        """Compare an engine with the float64 twin on some images, and put it in the card."""
        expected = self.twin(images, subject)
        found = compare(expected, self.space_of(subject), engine.of(subject), images)
        card = found.model_copy(update={"subject": subject})
        self.keep_parity(card)
        return card

    def keep_parity(self, card: ParityCard) -> None:
        """Put a measured parity in the card, in place of an older one of that form and subject."""

        def key(kept: ParityCard) -> tuple[str | None, ...]:
            return kept.form, kept.precision, kept.trunk_precision, kept.subject

        others = [kept for kept in self.card.parity if key(kept) != key(card)]
        self.card = self.card.model_copy(update={"parity": (*others, card)})

    def save(self, folder: str | Path, *, onnx: bool = False) -> Path:
        """Write the model folder, whole or not at all; an older model of that name is replaced."""
        with atomic_folder(Path(folder), marker=CARD_FILE) as part:
            self.card.write(part)
            save_tensors(part / MODEL_FILE, self._trained_arrays())
            save_tensors(part / BASIS_FILE, self._basis_arrays())
            save_tensors(part / FOLDED_FILE, self._folded_arrays())
            arrays, _ = self.space.to_arrays()
            for subject, space in self.spaces.items():
                own, _ = space.to_arrays()
                arrays |= {f"{subject}.{name}": array for name, array in own.items()}
            save_tensors(part / VERTICES_FILE, arrays)
            Golden.save_subjects(part, self.goldens)
            if not self.card.trunk.pretrained:
                self.trunk.save(part / TRUNK_FILE)
            if onnx:
                export_trunk(self.trunk, part / ONNX_FILE)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> GroupEncoder:
        """Read what `save` wrote; anything damaged or foreign is a BrainfastError."""
        folder = Path(folder)
        card = Card.read(folder)
        space = read_space(folder, card)
        spaces = {subject: read_space(folder, card, subject) for subject in card.subjects}
        weights = folder / TRUNK_FILE
        trunk = Trunk.from_config(card.trunk, weights=weights if weights.is_file() else None)
        make_model, make_config = model_class(card.model)
        path = folder / MODEL_FILE
        state = {name: torch.from_numpy(array) for name, array in load_tensors(path).items()}
        basis = Basis.load(folder / BASIS_FILE, space)
        try:
            if not isinstance(card.head, BlobHeadCard):
                raise ValueError("the card of a model of one subject")
            config = make_config(**card.head.options)
            if config.subjects != tuple(card.subjects):
                raise ValueError(f"maps of {config.subjects} for {tuple(card.subjects)}")
            embedding = torch.from_numpy(basis.weight), torch.from_numpy(basis.bias)
            shape = state["shared"].shape  # before hostile options take the memory
            if shape != (config.components, config.latent):
                raise ValueError(f"shared {list(shape)}")
            head = make_model(card.trunk.channels, card.trunk.layers, config, *embedding)
            head.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BrainfastError(
                str(path),
                expected=f"the parameters of the {card.model} head in config.json",
                got=str(error).splitlines()[0],
                remedy="copy the whole folder again",
            ) from error
        goldens = Golden.load_subjects(folder, (*spaces, GROUP))
        return cls(trunk, head.eval(), spaces, space, card, goldens)

    @torch.no_grad()
    def _predict(
        self, images: Any, subject: str, batch_size: int
    ) -> Iterator[NDArray[np.float32]]:  # [b,V_s]
        index, columns = self.head.subject_index(subject), self._columns(subject)
        for tokens in self.trunk.features(images, batch_size):
            latent = self.head.latent(self.head.project(tokens))
            subjects = torch.full((len(latent),), index, device=latent.device)
            yield self.head.respond(latent, subjects).cpu().numpy()[:, columns]

    def _columns(self, subject: str) -> NDArray[np.int64]:
        return self.space.positions(self.space_of(subject))

    def _name_of(self, owner: str | None) -> str | None:
        """What the model calls a subject, whose data may have another name of their own."""
        names = (name for name, space in self.spaces.items() if owner and space.subject == owner)
        return next(names, owner)

    def _known_hash(self, subject: str, split: Split) -> str:
        """Of the subject's part in training; of any part where the training is not known."""
        known = self.card.training.split_hashes if self.card.training else {}
        if not any(name.endswith(f"/{subject}") for name in known):
            return split.hash
        return known.get(f"{split.name}/{subject}", split.hash)

    def _trained_arrays(self) -> dict[str, NDArray[np.float32]]:
        return {k: v.detach().cpu().numpy() for k, v in self.head.state_dict().items()}

    def _basis_arrays(self) -> dict[str, NDArray[np.float32]]:
        return {name: getattr(self.head, name).cpu().numpy() for name in ("weight", "bias")}

    def _folded_arrays(self) -> dict[str, NDArray[np.float32]]:
        heads = self.fold((*self.subjects, GROUP))
        arrays = next(iter(heads.values())).projection.arrays()
        for subject, head in heads.items():
            arrays |= {
                f"subject.{subject}.weight": head.weight,
                f"subject.{subject}.bias": head.bias,
            }
        return arrays

    def _make_goldens(self, images: NDArray[np.uint8]) -> dict[str, Golden]:
        made, head = {}, self._head_in_float64()
        latent = self._twin_latent(head, list(images))
        for subject in (*self.subjects, GROUP):
            columns = self._columns(subject)
            vertices = np.unique(np.linspace(0, len(columns) - 1, GOLDEN_VERTICES).astype(np.int64))
            response = head.twin(latent, subject, columns[vertices]).astype(np.float32)
            made[subject] = Golden(images, vertices, response)
        return made
