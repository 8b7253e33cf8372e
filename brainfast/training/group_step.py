"""One step of a model of several subjects: the same for one big batch, many micro-batches and many
processes.

BatchNorm needs the whole batch. Each micro-batch is projected to [L,b,K]; these small tensors are
put together over micro-batches and processes; the rest of the head and the loss run once on all of
them, and the gradient of the projections is handed back to the micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.blobgpt import BlobGPT
from ..models.llm_vem import LlmVem
from ..tokens import Tokens
from ..trunks import Trunk, strict_fp32
from .group_batches import GroupBatch, dropout_mask
from .group_losses import info_nce, masked_squared_error
from .group_recipes import GroupRecipe
from .ranks import Ranks


class Trained(torch.nn.Module):
    """Head and unfrozen trunk parameters together: what the optimiser moves and a checkpoint
    holds."""

    def __init__(self, head: BlobGPT, trunk: Trunk, recipe: GroupRecipe) -> None:
        super().__init__()
        self.head = head
        head.requires_grad_(not recipe.freeze_head)
        if isinstance(head, LlmVem):
            aligned = recipe.alignment is not None
            head.text.requires_grad_(aligned)
            learned = aligned and bool(recipe.alignment and recipe.alignment.learn_temperature)
            head.log_temperature.requires_grad_(learned)
        chosen = [
            (name, parameter)
            for name, parameter in trunk.model.named_parameters()
            if any(part in name for part in recipe.unfreeze)
            and not any(part in name for part in recipe.keep_frozen)
        ]
        trunk.requires_grad_(False)
        for _, parameter in chosen:
            parameter.requires_grad_(True)
        # A module may not have dots in the names of its parameters.
        self.tuned = torch.nn.ParameterDict({n.replace(".", "/"): p for n, p in chosen})

    @property
    def tunes_trunk(self) -> bool:
        """Whether gradients have to reach the trunk."""
        return len(self.tuned) > 0


class GroupStep:
    """Forward and backward of one step; gradients end in the parameters, summed over all ranks."""

    def __init__(
        self, trained: Trained, trunk: Trunk, recipe: GroupRecipe, ranks: Ranks, seed: int
    ) -> None:
        self.trained, self.trunk, self.recipe = trained, trunk, recipe
        self.ranks, self.seed = ranks, seed

    def __call__(
        self,
        batches: Sequence[GroupBatch],  # this rank's, in order
        step: int,
        text: torch.Tensor | None = None,  # [B,text_dim], of all ranks
        images: torch.Tensor | None = None,  # [B] int64, equal for equal images
    ) -> dict[str, float]:
        """The losses of the whole batch, by name."""
        head = self.trained.head
        head.train()
        if self.recipe.freeze_head:
            head.norms.eval()
        # What a graph would hold is kept where it is cheap: the tokens of a frozen trunk, or the
        # one batch that there is. Else the pass through the trunk is made twice.
        keep = len(batches) == 1 or not self.trained.tunes_trunk
        parts = []
        for batch in batches:
            with torch.set_grad_enabled(keep):
                parts.append(self._project(batch, step))
        projections = self.ranks.gather(torch.cat([p.detach() for p in parts], dim=1), dim=1)
        projections.requires_grad_()
        losses = self._tail(projections, batches, text, images)
        if projections.grad is not None:
            own = self.ranks.sum(projections.grad)[:, self.ranks.share(projections.shape[1])]
            self._hand_back(own, parts, batches, step, keep)
        self.ranks.sum_gradients(self.trained.parameters())
        return losses

    def _tail(
        self,
        projections: torch.Tensor,  # [L,B,K]
        batches: Sequence[GroupBatch],
        text: torch.Tensor | None,
        images: torch.Tensor | None,
    ) -> dict[str, float]:
        """From the projections to the losses, and back to their gradient."""
        head, ranks = self.trained.head, self.ranks
        measured, present, subjects = (
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("measured", "present", "subjects")
        )
        count = ranks.sum(present.sum().to(torch.float64)).clamp(min=1)
        with strict_fp32():
            latent = head.latent(projections)
            predicted = head.respond(latent[ranks.share(projections.shape[1])], subjects)
            error = masked_squared_error(predicted, measured, present) / count.to(predicted.dtype)
            total = error
            losses = {"mse": float(ranks.sum(error.detach().clone()))}
            if self.recipe.alignment is not None and text is not None:
                assert isinstance(head, LlmVem)
                assert images is not None
                align = info_nce(head.similarities(latent, text), images, self.recipe.alignment)
                losses["alignment"] = align.item()
                # Every rank computes it for the whole batch, and gradients are summed.
                total = total + self.recipe.alignment.strength / ranks.size * align
            backward(total)
        return losses

    def _hand_back(
        self,
        grad: torch.Tensor,  # [L,b,K], of this rank's samples
        parts: Sequence[torch.Tensor],
        batches: Sequence[GroupBatch],
        step: int,
        kept: bool,
    ) -> None:
        start = 0
        for part, batch in zip(parts, batches, strict=True):
            piece = part if kept else self._project(batch, step)
            if piece.requires_grad:
                backward(piece, grad[:, start : start + len(batch)])
            start += len(batch)

    def _project(self, batch: GroupBatch, step: int) -> torch.Tensor:  # [L,b,K]
        with (
            self._mode(),
            torch.set_grad_enabled(torch.is_grad_enabled() and self.trained.tunes_trunk),
        ):
            pixels = batch.pixels
            tokens = pixels if isinstance(pixels, Tokens) else self.trunk(pixels)
            tokens = tokens.map(lambda tensor: tensor.float())
        with strict_fp32():
            return self.trained.head.project(self._drop(tokens, batch.samples, step))

    def _mode(self) -> AbstractContextManager[Any]:
        if self.recipe.trunk_precision == "fp32":
            return strict_fp32()
        device = self.trunk.device.type
        autocast: AbstractContextManager[Any] = torch.autocast(device, dtype=torch.bfloat16)
        return autocast

    def _drop(self, tokens: Tokens, samples: NDArray[np.int64], step: int) -> Tokens:
        rate = self.trained.head.config.dropout
        if rate == 0:
            return tokens
        local, global_ = [], []
        for layer, (patches, summary) in enumerate(zip(tokens.local, tokens.global_, strict=True)):
            _, channels, height, width = patches.shape
            mask = dropout_mask(
                (channels, height * width + 1),
                samples,
                keep=1 - rate,
                seed=self.seed,
                step=step,
                layer=layer,
                device=patches.device,
            )
            local.append(patches * mask[..., 1:].reshape(-1, channels, height, width))
            global_.append(summary * mask[..., 0])
        return Tokens(tuple(local), tuple(global_), tokens.layers)


def backward(tensor: torch.Tensor, grad: torch.Tensor | None = None) -> None:
    """Accumulate the gradients of `tensor`."""
    torch.autograd.backward([tensor], None if grad is None else [grad])
