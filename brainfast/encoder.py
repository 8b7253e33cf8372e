"""An encoder: trunk, trained head and vertex space, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .analysis.scores import Scores
from .card import CARD_FILE, Card, HeadCard, ParityCard, ScoreCard, TrainingCard
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
from .engine import (
    ONNX_FILE,
    TRUNK_FILE,
    VERTICES_FILE,
    Engine,
    read_space,
)
from .errors import BrainfastError
from .files import atomic_folder, hash_arrays, load_tensors, save_tensors
from .folded import FoldedFactorTopy, Precision
from .golden import Golden
from .group_encoder import GroupEncoder
from .heads import FOLDED_FILE
from .models.registry import model_class
from .parity import compare, twin
from .response import Response
from .trunk_export import export_trunk
from .trunks import Trunk
from .vertex_space import Selection, VertexSpace


@dataclass
class Encoder:
    """A trained brain-encoding model.

    trunk and head are torch modules, `space` says which vertices the head answers for, `card` what
    the model is. `history` is the training curve: step, loss and validation R2 of every epoch.
    """

    trunk: Trunk
    head: Any
    space: VertexSpace
    card: Card
    golden: Golden
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def from_training(
        cls,
        *,
        model: str,
        trunk: Trunk,
        head: Any,
        data: Any,
        recipe: dict[str, Any],
        seed: int,
        steps: int,
        best_step: int,
        soup_steps: tuple[int, ...],
        golden_images: Sequence[Any],
        history: list[dict[str, float]],
    ) -> Encoder:
        """Make the card and the golden responses of a head that was just trained on `data`."""
        folded = head.fold()
        training = TrainingCard(
            recipe=recipe,
            split_hash=data.split_hash,
            split_hashes={split.name: split.hash for split in (data.train, data.val, data.heldout)},
            images={"train": len(data.train.images), "val": len(data.val.images)},
            seed=seed,
            steps=steps,
            best_step=best_step,
            soup_steps=soup_steps,
            torch_version=str(torch.__version__),
        )
        card = Card(
            model=model,
            brainfast_version=version("brainfast"),
            trunk=trunk.config,
            head=HeadCard(
                grid=folded.grid,
                samples=folded.samples,
                pool_space=folded.pool_space,
                options=head.config.model_dump(mode="json"),
            ),
            space=space_card(
                data.space,
                visual_angle_deg=data.visual_angle_deg,
                surface=head.config.surface,
                coordinates_hash=_coordinates_hash(head.coordinates),
            ),
            training=training,
            model_hash=model_hash(
                folded.arrays(),
                trunk,
                data.space,
                [folded.grid, folded.samples, folded.pool_space],
            ),
        )
        golden = _make_golden(trunk, head, golden_images)
        return cls(trunk, head, data.space, card, golden, history)

    @torch.no_grad()
    def respond(self, images: Any, *, batch_size: int = 16) -> Response:
        """Responses [B,V] in z units through torch alone: the readable way, not the fast one."""
        return Response(np.concatenate(list(self._predict(images, batch_size))), self.space)

    def evaluate(self, split: Split, *, batch_size: int = 16, progress: bool = True) -> Scores:
        """Scores of one split, per vertex, with its noise ceiling; their means go into the card.

        A split of another vertex space, or without responses, is a BrainfastError.
        """
        known = self.card.training.split_hashes if self.card.training else {}
        check_split(split, self.space, known.get(split.name, split.hash))
        predicted = self._predict(split.images, batch_size)
        scores = score_split(predicted, split, self.card.model_hash, progress=progress)
        self._record(score_card(split.name, scores))
        return scores

    def fold(self) -> FoldedFactorTopy:
        """The head as constants."""
        folded: FoldedFactorTopy = self.head.fold()
        return folded

    def compile(
        self,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        trunk_precision: Literal["fp32", "bf16"] = "fp32",
        vertices: Selection = None,
        runtime: Literal["torch", "compile", "onnx"] = "torch",
        folder: str | Path | None = None,
        threads: int | None = None,
    ) -> Engine:
        """Fold the head, pack its weights, open the trunk runtime and check the golden responses.

        device: "auto" takes a GPU where there is one, for all of `predict`. vertices: region names,
        indices or a mask. runtime="onnx" writes `trunk.onnx` into `folder`, where it is not yet;
        "compile" takes half a minute and a C++ compiler, see `CompiledRuntime`.
        """
        opened = compile_trunk(self.trunk, runtime, device, trunk_precision, folder, threads)
        head = self.fold().with_precision(precision)
        engine = Engine(opened, head, self.space, self.card)
        engine.check(self.golden)
        return engine.take(vertices)

    def twin(self, images: Any) -> NDArray[np.float64]:
        """Responses [B,V] by Listing 1 in float64 on the trunk's fp32 tokens: the yardstick."""
        return twin(self.trunk, self.head, images)

    def parity(
        self,
        engine: Engine,
        images: Any,
        expected: NDArray[np.float64] | None = None,
        measured: NDArray[np.float32] | None = None,  # [B,V]
    ) -> ParityCard:
        """Compare an engine with the float64 twin on some images, and put the result in the card.

        Errors are in standard deviations of the twin's response, over the vertices that the engine
        has. expected: what `twin` gave for these images, where it is known already. measured: their
        measured responses; the card then holds the largest change of a vertex's R2.
        """
        expected = self.twin(images) if expected is None else expected
        card = compare(expected, self.space, engine, images, measured)
        self.keep_parity(card)
        return card

    def keep_parity(self, card: ParityCard) -> None:
        """Put a measured parity in the card, in place of an older one of the same form."""
        key = (card.form, card.precision, card.trunk_precision)
        others = [p for p in self.card.parity if (p.form, p.precision, p.trunk_precision) != key]
        self.card = self.card.model_copy(update={"parity": (*others, card)})

    def save(self, folder: str | Path, *, onnx: bool = False) -> Path:
        """Write the model folder, whole or not at all; an older model of that name is replaced.

        onnx=True adds `trunk.onnx`, with which `Engine.load` needs no torch.
        """
        with atomic_folder(Path(folder), marker=CARD_FILE) as part:
            self.card.write(part)
            weights = {k: v.detach().cpu().numpy() for k, v in self.head.state_dict().items()}
            save_tensors(part / MODEL_FILE, weights)
            save_tensors(part / FOLDED_FILE, self.fold().arrays())
            arrays, _ = self.space.to_arrays()
            save_tensors(part / VERTICES_FILE, arrays | {"coordinates": weights["coordinates"]})
            self.golden.save(part)
            if not self.card.trunk.pretrained:
                self.trunk.save(part / TRUNK_FILE)
            if onnx:
                export_trunk(self.trunk, part / ONNX_FILE)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """Read what `save` wrote; anything damaged or foreign is a BrainfastError."""
        folder = Path(folder)
        card = Card.read(folder)
        space = read_space(folder, card)
        weights = folder / TRUNK_FILE
        trunk = Trunk.from_config(card.trunk, weights=weights if weights.is_file() else None)
        make_model, make_config = model_class(card.model)
        path = folder / MODEL_FILE
        state = {name: torch.from_numpy(array) for name, array in load_tensors(path).items()}
        try:
            config = make_config(**card.head.options)
            rows = (len(state["coordinates"]) * config.samples, config.dim)
            if state["weight"].shape != rows:  # before hostile options take the memory
                raise ValueError(f"weight {list(state['weight'].shape)} for {list(rows)}")
            if _coordinates_hash(state["coordinates"]) != card.space.coordinates_hash:
                raise ValueError("coordinates whose hash differs")
            head = make_model(state["coordinates"], card.trunk.channels, card.trunk.layers, config)
            head.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BrainfastError(
                str(path),
                expected=f"the parameters of the {card.model} head in config.json",
                got=str(error).splitlines()[0],
                remedy="copy the whole folder again",
            ) from error
        return cls(trunk, head, space, card, Golden.load(folder))

    @torch.no_grad()
    def _predict(self, images: Any, batch_size: int) -> Iterator[NDArray[np.float32]]:
        selectors = self.head.selectors()
        for tokens in self.trunk.features(images, batch_size):
            yield self.head.respond(tokens, selectors).cpu().numpy()

    def _record(self, card: ScoreCard) -> None:
        others = [old for old in self.card.scores if old.split != card.split]
        self.card = self.card.model_copy(update={"scores": (*others, card)})


def _coordinates_hash(coordinates: torch.Tensor) -> str:  # [V,3]
    return hash_arrays({"coordinates": coordinates.cpu().numpy()})


def _make_golden(trunk: Trunk, head: Any, images: Sequence[Any]) -> Golden:
    small = golden_images(trunk, images)
    vertices = np.unique(np.linspace(0, head.V - 1, GOLDEN_VERTICES).astype(np.int64))
    response = twin(trunk, head, list(small), vertices).astype(np.float32)
    return Golden(small, vertices, response)


def load(folder: str | Path) -> Encoder | GroupEncoder:
    """Read a model folder: of one subject, or of several."""
    if Card.read(Path(folder)).subjects:
        return GroupEncoder.load(folder)
    return Encoder.load(folder)
