"""An encoder: trunk, trained head and vertex space, and the folder that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .analysis.scores import ScoreAccumulator, Scores
from .card import CARD_FILE, Card, HeadCard, ParityCard, ScoreCard, SpaceCard, TrainingCard
from .data.splits import Split
from .engine import (
    FOLDED_FILE,
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
from .images import as_images
from .models.registry import model_class
from .parity import compare, twin
from .response import Response
from .runtimes import OnnxRuntime, TorchRuntime, TrunkRuntime, export_trunk
from .trunks import Trunk
from .vertex_space import Selection, VertexSpace

MODEL_FILE = "model.safetensors"
GOLDEN_VERTICES = 64


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
            space=_space_card(data.space, head, data.visual_angle_deg),
            training=training,
            model_hash=_model_hash(folded, trunk, data.space),
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
        if split.responses is None:
            raise BrainfastError(
                f"the {split.name} split",
                expected="measured responses",
                got="none",
                remedy="evaluate the heldout split, or add the organisers' files",
            )
        self._check_split(split)
        accumulator, start = ScoreAccumulator(), 0
        bar = tqdm(total=len(split.images), desc="scoring", unit="image", disable=not progress)
        with bar:
            for predicted in self._predict(split.images, batch_size):
                stop = start + len(predicted)
                accumulator.update(predicted, split.responses[np.arange(start, stop)])
                bar.update(stop - start)
                start = stop
        scores = accumulator.scores(
            split.ceiling,
            reason=split.ceiling_reason,
            split_hash=split.hash,
            model_hash=self.card.model_hash,
        )
        self._record(_score_card(split.name, scores))
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
        runtime: Literal["torch", "onnx"] = "torch",
        folder: str | Path | None = None,
        threads: int | None = None,
    ) -> Engine:
        """Fold the head, pack its weights, open the trunk runtime and check the golden responses.

        device: of the trunk, "auto" takes a GPU where there is one. vertices: region names,
        indices or a mask. runtime="onnx" writes `trunk.onnx` into `folder`, where it is not yet.
        """
        opened = self._open_runtime(runtime, device, trunk_precision, folder, threads)
        head = self.fold().with_precision(precision)
        self.golden.check(opened, head, self.card.trunk.preprocessing)
        return Engine(opened, head, self.space, self.card).take(vertices)

    def twin(self, images: Any) -> NDArray[np.float64]:
        """Responses [B,V] by Listing 1 in float64 on the trunk's fp32 tokens: the yardstick."""
        return twin(self.trunk, self.head, images)

    def parity(
        self, engine: Engine, images: Any, expected: NDArray[np.float64] | None = None
    ) -> ParityCard:
        """Compare an engine with the float64 twin on some images, and put the result in the card.

        Errors are in standard deviations of the twin's response, over the vertices that the engine
        has. expected: what `twin` gave for these images, where it is known already.
        """
        expected = self.twin(images) if expected is None else expected
        card = compare(expected, self.space, engine, images)
        key = (card.form, card.precision, card.trunk_precision)
        others = [p for p in self.card.parity if (p.form, p.precision, p.trunk_precision) != key]
        self.card = self.card.model_copy(update={"parity": (*others, card)})
        return card

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

    def _open_runtime(
        self,
        runtime: str,
        device: str,
        precision: Literal["fp32", "bf16"],
        folder: str | Path | None,
        threads: int | None,
    ) -> TrunkRuntime:
        if runtime == "torch":
            return TorchRuntime(self.trunk, precision=precision, device=device)
        if runtime != "onnx":
            raise BrainfastError("runtime", expected="torch or onnx", got=repr(runtime))
        if folder is None or precision != "fp32" or device not in ("auto", "cpu"):
            raise BrainfastError(
                "runtime onnx",
                expected="a folder for trunk.onnx, trunk_precision fp32, the CPU",
                got=f"folder {folder}, {precision} on {device}",
                remedy="use runtime='torch'",
            )
        path = Path(folder) / ONNX_FILE
        if not path.is_file():
            export_trunk(self.trunk, path)
        config = self.card.trunk
        return OnnxRuntime(path, config.layers, threads=threads, weights_hash=config.weights_hash)

    @torch.no_grad()
    def _predict(self, images: Any, batch_size: int) -> Iterator[NDArray[np.float32]]:
        selectors = self.head.selectors()
        for tokens in self.trunk.features(images, batch_size):
            yield self.head.respond(tokens, selectors).cpu().numpy()

    def _check_split(self, split: Split) -> None:
        """Refuse another subject's images, and a split that holds images trained on."""
        mine, other = self.space.subject, split.space.subject
        if split.space != self.space or (None not in (mine, other) and mine != other):
            raise BrainfastError(
                f"the {split.name} split",
                expected=f"the {self.space.V} vertices of {mine}, which the model was trained on",
                got=f"{split.space.V} vertices of {other}",
                remedy="a model answers for the vertices of one subject",
            )
        known = self.card.training.split_hashes if self.card.training else {}
        if known.get(split.name, split.hash) != split.hash:
            raise BrainfastError(
                f"the {split.name} split",
                expected="the split that the model was trained with",
                got="another one, so that training images could be scored",
                remedy="give the same images, groups and seed as in training",
            )

    def _record(self, card: ScoreCard) -> None:
        others = [old for old in self.card.scores if old.split != card.split]
        self.card = self.card.model_copy(update={"scores": (*others, card)})


def _space_card(space: VertexSpace, head: Any, visual_angle_deg: float | None) -> SpaceCard:
    _, about = space.to_arrays()
    return SpaceCard(
        vertices=space.V,
        surface=head.config.surface,
        coordinates_hash=_coordinates_hash(head.coordinates),
        visual_angle_deg=visual_angle_deg,
        **about,
    )


def _coordinates_hash(coordinates: torch.Tensor) -> str:  # [V,3]
    return hash_arrays({"coordinates": coordinates.cpu().numpy()})


def _model_hash(folded: FoldedFactorTopy, trunk: Trunk, space: VertexSpace) -> str:
    """SHA-256 over all that a response depends on."""
    rest: list[Any] = [
        trunk.config.weights_hash,
        trunk.preprocessing.model_dump(mode="json"),
        space.hash(),
    ]
    rest += [folded.grid, folded.samples, folded.pool_space]
    return hash_arrays(folded.arrays() | {json.dumps(rest): np.zeros(0)})


def _make_golden(trunk: Trunk, head: Any, images: Sequence[Any]) -> Golden:
    height, width = trunk.preprocessing.size
    small = [
        np.asarray(Image.fromarray(image).resize((width, height)))
        for image in as_images(list(images))
    ]
    vertices = np.unique(np.linspace(0, head.V - 1, GOLDEN_VERTICES).astype(np.int64))
    response = twin(trunk, head, small, vertices).astype(np.float32)
    return Golden(np.stack(small), vertices, response)


def _score_card(split: str, scores: Scores) -> ScoreCard:
    summary = scores.summary()

    def known(name: str) -> float | None:
        return summary[name] if math.isfinite(summary[name]) else None

    return ScoreCard(
        split=split,
        split_hash=scores.split_hash,
        images=scores.n,
        r2_mean=known("r2_mean"),
        r2_median=known("r2_median"),
        r_mean=known("r_mean"),
        challenge_mean=known("normalised_mean"),
        challenge_median=known("normalised_median"),
        ceiling_mean=known("ceiling_mean"),
        reason=scores.reason,
    )


def load(folder: str | Path) -> Encoder:
    """Read a model folder, see `Encoder.load`."""
    return Encoder.load(folder)
