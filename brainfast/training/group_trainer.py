"""Training of BlobGPT and LLM-VEM: schedule, validation, the best checkpoint, exact resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..analysis.scores import ScoreAccumulator
from ..data.splits import Split
from ..data.token_file import locked
from ..errors import BrainfastError
from ..models.blobgpt import BlobGPT
from ..tokens import Tokens
from ..trunks import Trunk
from .checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from .group_batches import GroupBatches, GroupSamples, Texts
from .group_recipes import GroupRecipe
from .group_step import GroupStep, Trained
from .group_tokens import GroupTokens
from .ranks import Ranks
from .trainer import CHECKPOINT, LOCK_FILE

BEST = "best.safetensors"
VALIDATION_BATCH = 32


class GroupTrainer:
    """One phase of training; everything that it needs to go on lies in `work`.

    validation: the split of every subject by name, in its own vertices; positions: where these lie
    in the union. text: embeddings by image id, for LLM-VEM. tokens: of a cache, where there is one.
    """

    def __init__(
        self,
        head: BlobGPT,
        trunk: Trunk,
        recipe: GroupRecipe,
        *,
        train: GroupSamples,
        validation: Mapping[str, Split],
        positions: Mapping[str, NDArray[np.int64]],
        text: Texts | None,
        seed: int,
        work: Path,
        key: dict[str, Any],
        ranks: Ranks,
        progress: bool,
        tokens: GroupTokens | None = None,
    ) -> None:
        _check_batch(recipe, train)
        _check_validation(validation)
        self.head, self.trunk = head.to(ranks.device), trunk.to(ranks.device)
        self.recipe, self.ranks, self.work = recipe, ranks, work
        self.train, self.validation, self.positions = train, validation, positions
        self.trained = Trained(self.head, self.trunk, recipe)
        self.optimizer = _make_optimizer(self.trained, recipe)
        self.step_once = GroupStep(self.trained, self.trunk, recipe, ranks, seed)
        self.batches = GroupBatches(
            train,
            trunk.preprocessing,
            batch=recipe.batch,
            micro_batch=recipe.micro_batch or recipe.batch,
            share=ranks.share(min(recipe.batch, len(train))),
            crop_scale=recipe.crop_scale,
            seed=seed,
            tokens=None if tokens is None else tokens.of_samples,
        )
        self.tokens = tokens
        self.text = text if recipe.alignment is not None else None
        if self.text is not None:
            self.text.of(train.image_ids)  # an image without a text is an error now, not later
        self.images = np.unique(train.image_ids, return_inverse=True)[1]
        self.show = progress and ranks.first
        self.state = Progress(key=key)
        path = work / CHECKPOINT
        if path.is_file():
            self.state = load_checkpoint(path, self.trained, self.optimizer, key)

    def run(self) -> Progress:
        """Train to the last step; leaves the best weights in the head and the trunk."""
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.state.step,
            desc=f"phase {self.recipe.phase}",
            unit="step",
            disable=not self.show,
        )
        self.work.mkdir(parents=True, exist_ok=True)
        lock = locked(self.work, LOCK_FILE) if self.ranks.first else nullcontext()
        try:
            with lock, bar:
                self._train(bar)
        finally:
            self.batches.close()
        self.ranks.wait()
        self.trained.load_state_dict(load_weights(self.work / BEST))
        self.head.eval()
        return self.state

    def _train(self, bar: tqdm[Any]) -> None:
        sums: dict[str, float] = {}
        since = 0
        while self.state.step < self.recipe.steps:
            losses = self._step(self.state.step)
            self.state.step += 1
            since += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.set_postfix_str(f"loss {sums['mse'] / since:.4f}{self._last_r2()}", refresh=False)
            bar.update()
            last = self.state.step == self.recipe.steps
            if last or self.state.step % self.recipe.check_every == 0:
                self._check({name: value / since for name, value in sums.items()})
                sums, since = {}, 0

    def _step(self, step: int) -> dict[str, float]:
        device = self.ranks.device
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        samples = self.batches.samples(step)
        text = images = None
        if self.text is not None:
            text = torch.from_numpy(self.text.of(self.train.image_ids[samples])).to(device)
            images = torch.from_numpy(self.images[samples]).to(device)
        self.optimizer.zero_grad(set_to_none=True)
        batches = [batch.to(device) for batch in self.batches.step(step)]
        losses = self.step_once(batches, step, text, images)
        if not all(math.isfinite(value) for value in losses.values()):
            raise BrainfastError(
                f"training step {step}",
                expected="a finite loss",
                got=f"{losses}",
                remedy=f"lower the learning rate; the last checkpoint is kept in {self.work}",
            )
        self.optimizer.step()
        return losses

    def _check(self, losses: dict[str, float]) -> None:
        """Validate, and keep the checkpoint; the best weights are those of the highest R2."""
        self.head.eval()
        r2 = self.validate()
        step = self.state.step
        self.state.history.append({"step": step, "loss": losses.pop("mse"), "r2": r2} | losses)
        best = self.state.best_r2 is None or r2 > self.state.best_r2
        if best:
            self.state.best_r2, self.state.best_step = r2, step
        if self.ranks.first:
            if best:
                save_weights(self.work / BEST, self.trained)
            save_checkpoint(self.work / CHECKPOINT, self.trained, self.optimizer, self.state)
        self.ranks.wait()

    @torch.no_grad()
    def validate(self) -> float:
        """Median over subjects and vertices of the R2 on the validation images."""
        mine = list(self.validation)[self.ranks.rank :: self.ranks.size]
        found = self.ranks.collect([self._score(subject) for subject in mine])
        r2 = np.concatenate([values for part in found for values in part])
        if not np.isfinite(r2).any():
            raise BrainfastError(
                f"validation of step {self.state.step}",
                expected="a finite R2",
                got="none",
                remedy="lower the learning rate or check the responses",
            )
        return float(np.nanmedian(r2))

    def _score(self, subject: str) -> NDArray[np.float64]:  # [V_s]
        split, limit = self.validation[subject], self.recipe.validation_images
        count = len(split) if limit is None else min(limit, len(split))
        index = self.head.subject_index(subject)
        rows = torch.from_numpy(self.positions[subject]).to(self.ranks.device)
        accumulator, start = ScoreAccumulator(), 0
        assert split.responses is not None
        for tokens in self._validation_tokens(subject, count):
            latent = self.head.latent(self.head.project(tokens))
            subjects = torch.full((len(latent),), index, device=latent.device)
            predicted = self.head.respond(latent, subjects)[:, rows]
            stop = start + len(latent)
            accumulator.update(predicted.cpu().numpy(), split.responses[np.arange(start, stop)])
            start = stop
        if accumulator.n < 2:  # hardly measured: no say in the median
            return np.full(len(rows), np.nan)
        return accumulator.r2()

    def _validation_tokens(self, subject: str, count: int) -> Iterator[Tokens]:
        if self.tokens is None:
            images = self.validation[subject].images[:count]
            yield from self.trunk.features(images, VALIDATION_BATCH)
            return
        for start in range(0, count, VALIDATION_BATCH):
            rows = range(start, min(start + VALIDATION_BATCH, count))
            tokens = self.tokens.of_validation(subject, rows)
            yield tokens.map(lambda tensor: tensor.to(self.ranks.device))

    def _last_r2(self) -> str:
        if not self.state.history:
            return ""
        return f", median validation R2 {self.state.history[-1]['r2']:.3f}"


def learning_rate(recipe: GroupRecipe, step: int) -> float:
    """Linear from 0 over the warm-up, then half a cosine from lr to min_lr at the last step."""
    if step < recipe.warm_up:
        return recipe.lr * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up - 1, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine


def _make_optimizer(trained: Trained, recipe: GroupRecipe) -> torch.optim.AdamW:
    parameters = {n: p for n, p in trained.named_parameters() if p.requires_grad}
    if not parameters:
        raise BrainfastError(
            "recipe",
            expected="something to train",
            got=f"a frozen head, and no trunk parameter named {recipe.unfreeze}",
            remedy="unfreeze other parameters, see the trunk's named_parameters()",
        )
    # Decay would draw a temperature to 1.
    free = [p for name, p in parameters.items() if name.endswith("log_temperature")]
    decayed = [p for name, p in parameters.items() if not name.endswith("log_temperature")]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _check_batch(recipe: GroupRecipe, train: GroupSamples) -> None:
    if min(recipe.batch, len(train)) < 2:
        raise BrainfastError(
            "batch",
            expected="2 images or more, for BatchNorm in training",
            got=f"{recipe.batch} of {len(train)} images",
            remedy="train with a larger batch or more images",
        )


def _check_validation(validation: Mapping[str, Split]) -> None:
    for subject, split in validation.items():
        if len(split) < 2:
            raise BrainfastError(
                f"the {split.name} split of {subject}",
                expected="2 images or more, to choose the best step by",
                got=str(len(split)),
                remedy="give more images, or other fractions",
            )
