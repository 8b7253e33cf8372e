"""The training loop: steps, validation, early stop, exact resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..analysis.scores import ScoreAccumulator
from ..data.token_file import locked
from ..errors import BrainfastError
from ..models.factortopy import FactorTopy
from ..tokens import Tokens
from .checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from .losses import factortopy_loss
from .recipes import Recipe
from .soup import greedy_soup

CHECKPOINT = "checkpoint.safetensors"
LOCK_FILE = "training.lock"


class Responses(Protocol):
    """Measured responses [n,V] in z units, in memory or mapped from disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Examples:
    """Tokens and responses of the same n images."""

    tokens: Callable[[Sequence[int]], Tokens]
    responses: Responses

    def __len__(self) -> int:
        return len(self.responses)

    def batch(
        self, indices: NDArray[np.int64], device: torch.device
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens and responses [B,V] of some images, on `device`."""
        tokens = self.tokens(indices.tolist())
        tokens = Tokens(
            local=tuple(part.to(device) for part in tokens.local),
            global_=tuple(part.to(device) for part in tokens.global_),
            layers=tokens.layers,
        )
        measured = np.ascontiguousarray(self.responses[indices], dtype=np.float32)
        return tokens, torch.from_numpy(measured).to(device)


class Sampler:
    """Indices of every step, from the seed and the step alone, so that a resumed run sees the
    batches that it would have seen."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, min(batch, count), seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Indices [B] of `step`; every image comes once in each pass over the data."""
        position = step * self.batch + np.arange(self.batch)
        return np.array([self._pass(p // self.count)[p % self.count] for p in position.tolist()])

    def _pass(self, number: int) -> NDArray[np.int64]:
        if self._order[0] != number:
            self._order = (
                number,
                np.random.default_rng([self.seed, number]).permutation(self.count),
            )
        return self._order[1]


class Trainer:
    """Trains `model` on `train`, chooses on `validation`, keeps everything it needs in `work`."""

    def __init__(
        self,
        model: FactorTopy,
        recipe: Recipe,
        *,
        train: Examples,
        validation: Examples,
        soup: Examples | None = None,
        seed: int,
        work: Path,
        key: dict[str, Any],
        device: torch.device,
        progress: bool,
    ) -> None:
        _check_precision(recipe, device)
        self.model, self.recipe, self.device = model.to(device), recipe, device
        self.model.set_head_precision(recipe.head_precision)
        self.train, self.validation = train, validation
        self.soup = validation if soup is None else soup
        self.work = work
        self.sampler = Sampler(len(train), recipe.batch, seed)
        self.optimizer = _make_optimizer(model, recipe)
        self.show = progress
        self.state = Progress(key=key)
        path = work / CHECKPOINT
        if path.is_file():
            self.state = load_checkpoint(path, model, self.optimizer, key)

    def run(self) -> Progress:
        """Train until the last epoch or until patience runs out; leaves the best in the model."""
        bar = tqdm(
            total=self.recipe.max_steps,
            initial=self.state.step,
            desc="training",
            unit="step",
            disable=not self.show,
        )
        self.work.mkdir(parents=True, exist_ok=True)
        with locked(self.work, LOCK_FILE), bar:
            while not self._finished():
                self._epoch(bar)
        return self.state

    def choose(self) -> tuple[int, ...]:
        """Load the best checkpoint, or the greedy soup of the best, and give the steps used."""
        if self.recipe.soup > 1:
            weights, steps, _ = greedy_soup(self.state.kept, self._read_kept, self._score)
        else:
            weights, steps = self._read_kept(self.state.best_step), (self.state.best_step,)
        self.model.load_state_dict(weights)
        return steps

    @torch.no_grad()
    def validate(self, examples: Examples | None = None) -> float:
        """Mean over vertices of the R2 of some examples; of the validation split without any."""
        examples = self.validation if examples is None else examples
        selectors = self.model.selectors()
        accumulator = ScoreAccumulator()
        size = max(self.recipe.batch, 16)
        for start in range(0, len(examples), size):
            indices = np.arange(start, min(start + size, len(examples)))
            tokens, measured = examples.batch(indices, self.device)
            predicted = self.model.respond(tokens, selectors)
            accumulator.update(predicted.cpu().numpy(), measured.cpu().numpy())
        return float(np.nanmean(accumulator.r2()))

    def _finished(self) -> bool:
        epochs_since = (self.state.step - self.state.best_step) / self.recipe.steps_per_epoch
        return self.state.step >= self.recipe.max_steps or epochs_since >= self.recipe.patience

    def _epoch(self, bar: tqdm[Any]) -> None:
        losses = 0.0
        for count in range(1, self.recipe.steps_per_epoch + 1):
            losses += self._step(self.state.step)
            self.state.step += 1
            bar.update()
            if count % 10 == 0:
                self._describe(bar, losses / count)
        self._end_epoch(losses / self.recipe.steps_per_epoch)
        self._describe(bar, losses / self.recipe.steps_per_epoch)

    def _step(self, step: int) -> float:
        tokens, measured = self.train.batch(self.sampler.indices(step), self.device)
        selectors = self.model.selectors()
        try:
            predicted = self.model.respond(tokens, selectors)
        except BrainfastError as error:
            raise self._diverged(step, f"{error.name} with {error.got}") from error
        loss = factortopy_loss(predicted, measured, selectors, self.recipe, step)
        value = loss.item()
        if not np.isfinite(value):
            raise self._diverged(step, f"a loss of {value}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _end_epoch(self, loss: float) -> None:
        try:
            r2 = self.validate()
        except BrainfastError as error:
            got = f"{error.name} with {error.got} in validation"
            raise self._diverged(self.state.step, got) from error
        if not np.isfinite(r2):
            raise self._diverged(self.state.step, "a validation R2 that is not finite")
        step = self.state.step
        self.state.history.append({"step": step, "loss": loss, "r2": r2})
        if self.state.best_r2 is None or r2 > self.state.best_r2:
            self.state.best_r2, self.state.best_step = r2, step
        # Weights are written before the checkpoint that names them, and removed after the one that
        # no longer does: a kill between the two loses nothing.
        self.state.kept[step] = r2
        ranked = sorted(self.state.kept, key=lambda s: (-self.state.kept[s], s))
        dropped = ranked[max(self.recipe.soup, 1) :]
        self.state.kept = {s: self.state.kept[s] for s in ranked if s not in dropped}
        if step not in dropped:
            save_weights(self._kept_path(step), self.model)
        save_checkpoint(self.work / CHECKPOINT, self.model, self.optimizer, self.state)
        for old in dropped:
            self._kept_path(old).unlink(missing_ok=True)

    def _kept_path(self, step: int) -> Path:
        return self.work / f"kept-{step:08d}.safetensors"

    def _read_kept(self, step: int) -> dict[str, torch.Tensor]:
        return load_weights(self._kept_path(step))

    def _score(self, weights: Any) -> float:
        self.model.load_state_dict(weights)
        return self.validate(self.soup)

    def _describe(self, bar: tqdm[Any], loss: float) -> None:
        r2 = self.state.history[-1]["r2"] if self.state.history else float("nan")
        bar.set_postfix_str(f"loss {loss:.4f}, validation R2 {r2:.3f}", refresh=False)

    def _diverged(self, step: int, got: str) -> BrainfastError:
        last = self.state.history[-1]["step"] if self.state.history else None
        kept = f"the checkpoint of step {last:.0f} is kept" if last else "no checkpoint is there"
        return BrainfastError(
            f"training step {step}",
            expected="a finite loss",
            got=got,
            remedy=f"{kept} in {self.work}; lower the learning rate or check the responses",
        )


def _check_precision(recipe: Recipe, device: torch.device) -> None:
    if recipe.head_precision != "fp32" and device.type != "cpu":
        raise BrainfastError(
            "head_precision",
            expected=f"fp32 on {device.type}",
            got=recipe.head_precision,
            remedy="train on the CPU, or take fp32",
        )


def _make_optimizer(model: FactorTopy, recipe: Recipe) -> torch.optim.AdamW:
    selectors = model.selector_parameters
    ids = {id(parameter) for parameter in selectors}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [
        {"params": rest, "lr": recipe.lr},
        {"params": selectors, "lr": recipe.selector_lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
