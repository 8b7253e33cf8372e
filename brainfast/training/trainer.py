"""The training loop: steps, validation, early stop, exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..analysis.scores import ScoreAccumulator
from ..data.token_file import locked
from ..errors import BrainfastError
from ..models.factortopy import FactorTopy
from ..ops import factor_readout_cuda
from ..resident import ResidentExamples
from ..static_step import StaticStep, StepError
from .checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from .device_r2 import DeviceR2
from .examples import Batches, Examples, Resident, Sampler, placed
from .losses import factortopy_loss, regularizer_strength, weighted_loss
from .recipes import Recipe
from .soup import greedy_soup

CHECKPOINT = "checkpoint.safetensors"
LOCK_FILE = "training.lock"
MARGIN_BYTES = 1 << 30  # of a GPU's memory that nothing here counts


class Trainer:
    """Trains `model` on `train`, chooses on `validation`, keeps everything it needs in `work`.

    resident: whether tokens and responses are loaded to the device, see `examples.placed`. Where
    they are, a `StaticStep` takes the steps, on a CUDA device with compiled kernels as one graph;
    else each step is made on its own, and its loss awaited.
    """

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
        resident: Resident = "auto",
    ) -> None:
        _check_precision(recipe, device)
        self.model, self.recipe, self.device = model.to(device), recipe, device
        self.model.set_head_precision(recipe.head_precision)
        self.work, self.show = work, progress
        self.sampler = Sampler(len(train), recipe.batch, seed)
        self.optimizer = _make_optimizer(model, recipe, device)
        self.train = self._placed(train, "training images", resident)
        self.validation = self._placed(validation, "validation images", resident)
        self.soup = self.validation
        if soup is not None and soup is not validation:
            self.soup = self._placed(soup, "images of the soup", resident)
        self.static = self._static_step()
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
    def validate(self, examples: Batches | None = None) -> float:
        """Mean over vertices of the R2 of some examples; of the validation split without any."""
        examples = self.validation if examples is None else examples
        selectors = self.model.selectors()
        on_host, on_device = ScoreAccumulator(), DeviceR2()
        size = max(self.recipe.batch, 16)
        for start in range(0, len(examples), size):
            indices = np.arange(start, min(start + size, len(examples)))
            tokens, measured = examples.batch(indices, self.device)
            predicted = self.model.respond(tokens, selectors)
            if self.device.type == "cpu":
                on_host.update(predicted.numpy(), measured.numpy())
            else:
                on_device.update(predicted, measured)
        r2 = on_host.r2() if self.device.type == "cpu" else on_device.r2().cpu().numpy()
        return float(np.nanmean(r2))

    def _finished(self) -> bool:
        epochs_since = (self.state.step - self.state.best_step) / self.recipe.steps_per_epoch
        return self.state.step >= self.recipe.max_steps or epochs_since >= self.recipe.patience

    def _epoch(self, bar: tqdm[Any]) -> None:
        losses, count, steps = 0.0, 0, self.recipe.steps_per_epoch
        while count < steps:
            taken = self._take(steps - count)
            for loss in taken:
                losses += loss
            count += len(taken)
            self.state.step += len(taken)
            bar.update(len(taken))
            if count % 10 == 0:
                self._describe(bar, losses / count)
        self._end_epoch(losses / steps)
        self._describe(bar, losses / steps)

    def _take(self, most: int) -> list[float]:
        """The losses of the next step, or of as many as are taken between two looks at them."""
        step = self.state.step
        if self.static is None:
            return [self._step(step)]
        steps = range(step, step + min(most, self.static.most))
        rows = np.stack([self.sampler.indices(number) for number in steps])
        strengths = [regularizer_strength(self.recipe, number) for number in steps]
        try:
            losses = self.static.run(rows, strengths)
        except StepError as error:
            self._check_losses(step, error.losses)
            cause = error.__cause__
            assert isinstance(cause, BrainfastError)
            got = f"{cause.name} with {cause.got}"
            raise self._diverged(step + error.number, got) from cause
        self._check_losses(step, losses)
        return losses

    def _check_losses(self, first: int, losses: list[float]) -> None:
        for step, value in enumerate(losses, start=first):
            if not np.isfinite(value):
                raise self._diverged(step, f"a loss of {value}")

    def _static_step(self) -> StaticStep | None:
        """None where tokens are streamed or the device has no kernels that a graph can hold."""
        on_gpu = self.device.type == "cuda"
        if not isinstance(self.train, ResidentExamples):
            return None
        if on_gpu and not factor_readout_cuda.usable(self.train.device):
            return None
        return StaticStep(
            self._loss,
            self.optimizer,
            batch=self.sampler.batch,
            device=self.train.device,
            capture=on_gpu,
        )

    def _loss(self, rows: torch.Tensor, strength: torch.Tensor | None) -> torch.Tensor:
        assert isinstance(self.train, ResidentExamples)
        tokens, measured = self.train.gather(rows)
        selectors = self.model.selectors()
        predicted = self.model.respond(tokens, selectors)
        return weighted_loss(predicted, measured, selectors, self.recipe, strength)

    def _placed(
        self, examples: Examples, name: str, resident: Resident
    ) -> Examples | ResidentExamples:
        return placed(
            examples,
            name,
            self.device,
            resident=resident,
            reserve=working_bytes(self.model, self.sampler.batch),
            tell=self.show,
        )

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


def working_bytes(model: FactorTopy, batch: int) -> int:
    """Memory that training takes beside its examples, an estimate from above.

    Parameters with gradients, moments and a copy; the hidden layers of three selectors, forward and
    backward; packed weights; tokens and responses of a batch; and `MARGIN_BYTES`.
    """
    rows, dim = model.weight.shape
    parameters = sum(parameter.numel() for parameter in model.parameters())
    channels = sum(matrix.shape[1] for matrix in model.bottleneck_local)
    pixels = math.prod(model.config.grid) + 1
    floats: int = 6 * parameters + rows * (24 * 128 + 4 * dim)
    floats += batch * (8 * rows + 4 * pixels * channels)
    return 4 * floats + MARGIN_BYTES


def _check_precision(recipe: Recipe, device: torch.device) -> None:
    if recipe.head_precision != "fp32" and device.type not in ("cpu", "cuda"):
        raise BrainfastError(
            "head_precision",
            expected=f"fp32 on {device.type}",
            got=recipe.head_precision,
            remedy="train on a CPU or a CUDA device, or take fp32",
        )


def _make_optimizer(model: FactorTopy, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
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
        capturable=device.type == "cuda",
    )
