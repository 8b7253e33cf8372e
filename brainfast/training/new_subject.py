"""A new subject for a trained model: its own map from a few hundred trials, all else frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from tqdm import tqdm

from ..data.splits import Split
from ..errors import BrainfastError
from ..folded_blobgpt import GROUP, is_subject_name
from ..group_encoder import GroupEncoder
from ..models.blobgpt import BlobGPT
from .fit import GOLDEN_IMAGES
from .group_losses import masked_squared_error

ALPHAS = tuple(10.0**power for power in range(-4, 9))
LEAST_TRIALS = 4
RANK = 1e-6  # of the largest singular value: directions below it are not the subject's to tell


def add_subject(
    encoder: GroupEncoder,
    subject: str,
    train: Split,
    *,
    others: Sequence[Split] = (),
    trials: int | None = None,
    alphas: Sequence[float] = ALPHAS,
    sgd_steps: int = 0,
    lr: float = 1e-3,
    validation: Split | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GroupEncoder:
    """The model with one subject more: its map [R,K] and offset [R], by ridge regression.

    With E = U S V' the embedding on the subject's vertices and m its mean, the map minimises
    sum |y - m - E (shared f + W f + b)|^2 + alpha |S V' W|^2 over the first `trials` images of
    `train` (all without); alpha is chosen among `alphas` by leave-one-out error. Nothing else
    changes, so the answers for other subjects stay as they are, to the bit. Trials without any
    measurement are left out.
    others: the subject's other parts, which the model's card is to know, so that training images
    are never scored by mistake. sgd_steps: steps of AdamW on the squared error of the responses
    afterwards; with `validation` the best step is kept, the ridge's being one of them.

    Vertices outside the model's space, too few trials or a known name are a BrainfastError.
    """
    if subject in (*encoder.subjects, GROUP) or not is_subject_name(subject):
        raise BrainfastError(
            "subject",
            expected="a name that the model does not have, of letters, digits, - and _",
            got=repr(subject),
            remedy="rename the folder, or pass another name",
        )
    count = len(train) if trials is None else trials
    if not LEAST_TRIALS <= count <= len(train):
        raise BrainfastError(
            "trials", expected=f"{LEAST_TRIALS} to the {len(train)} of the split", got=str(count)
        )
    columns = encoder.space.positions(train.space)
    latent, measured = _examples(encoder, train, count, progress)
    if len(measured) < LEAST_TRIALS:
        raise BrainfastError(
            "trials",
            expected=f"at least {LEAST_TRIALS} with a measurement",
            got=f"{len(measured)} of {count}",
        )
    weight, bias = _ridge(encoder.head, columns, latent, measured, alphas)
    head = _with_map(encoder.head, subject, weight, bias)
    if sgd_steps:
        checks = None if validation is None else _examples(encoder, validation, None, progress)
        _refine(head, columns, latent, measured, checks, sgd_steps, lr, seed, progress)
    training = encoder.card.training
    if training is not None:
        parts = [train, *others]
        hashes = training.split_hashes | {f"{part.name}/{subject}": part.hash for part in parts}
        images = training.images | {f"{train.name}/{subject}": len(measured)}
        training = training.model_copy(update={"split_hashes": hashes, "images": images})
    return GroupEncoder.assemble(
        model=encoder.card.model,
        trunk=encoder.trunk,
        head=head,
        spaces=encoder.spaces | {subject: train.space},
        space=encoder.space,
        images=[train.images[index] for index in range(min(GOLDEN_IMAGES, len(train)))],
        training=training,
        visual_angle_deg=encoder.card.space.visual_angle_deg,
        history=encoder.history,
    )


@torch.no_grad()
def _examples(
    encoder: GroupEncoder, split: Split, count: int | None, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [n,K] and responses [n,V_s] of those of a split's first images that were measured."""
    count = len(split) if count is None else count
    if split.responses is None:
        raise BrainfastError(f"the {split.name} split", expected="measured responses", got="none")
    parts = []
    with tqdm(
        total=count, desc=f"tokens of {split.name}", unit="image", disable=not progress
    ) as bar:
        for tokens in encoder.trunk.features(split.images[:count], 16):
            parts.append(encoder.head.latent(encoder.head.project(tokens)).cpu())
            bar.update(len(parts[-1]))
    measured = torch.from_numpy(np.array(split.responses[np.arange(count)], dtype=np.float32))
    known = torch.isfinite(measured).any(dim=1)
    return torch.cat(parts)[known], measured[known]


def _ridge(
    head: BlobGPT,
    columns: NDArray[np.int64],  # [V_s]
    latent: torch.Tensor,  # [n,K]
    measured: torch.Tensor,  # [n,V_s]
    alphas: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map [R,K] and offset [R] of the new subject."""
    present = torch.isfinite(measured).all(dim=0)
    if not present.any():
        raise BrainfastError(
            "responses", expected="a vertex that is present in every trial", got="none"
        )
    rows = torch.from_numpy(columns)[present]
    basis, mean = head.weight.cpu()[rows].double(), head.bias.cpu()[rows].double()
    if head.config.pca_mean == "twice":
        mean = 2 * mean
    # In the directions U of the response, so that the error is that of the responses whether or
    # not the embedding is orthonormal on these vertices.
    left, sizes, right = torch.linalg.svd(basis, full_matrices=False)
    kept = sizes > RANK * sizes.max()
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    shared = latent.double() @ head.shared.detach().cpu().double().T
    rest = (measured[:, present].double() - mean) @ left - shared @ right.T * sizes
    ridge = RidgeCV(alphas=np.asarray(alphas)).fit(latent.double().numpy(), rest.numpy())
    back = right.T / sizes  # [R,kept]
    weight = back @ torch.from_numpy(np.atleast_2d(ridge.coef_))
    return weight.float(), (back @ torch.from_numpy(np.atleast_1d(ridge.intercept_))).float()


def _with_map(head: BlobGPT, subject: str, weight: torch.Tensor, bias: torch.Tensor) -> BlobGPT:
    """The same head with one map more, the last."""
    config = head.config.model_copy(update={"subjects": (*head.config.subjects, subject)})
    grown = type(head)(head.channels, head.layers, config, head.weight, head.bias)
    state = head.state_dict()
    for name, new in (("subject_weight", weight), ("subject_bias", bias)):
        state[name] = torch.cat([state[name], new[None].to(state[name])])
    grown.load_state_dict(state)
    return grown.to(head.weight.device).eval()


def _refine(
    head: BlobGPT,
    columns: NDArray[np.int64],  # [V_s]
    latent: torch.Tensor,  # [n,K]
    measured: torch.Tensor,  # [n,V_s]
    checks: tuple[torch.Tensor, torch.Tensor] | None,
    steps: int,
    lr: float,
    seed: int,
    progress: bool,
) -> None:
    """AdamW on the newest map alone, towards the squared error of the responses."""
    rows = torch.from_numpy(columns)
    basis, mean = head.weight.cpu()[rows], head.bias.cpu()[rows]
    mean = 2 * mean if head.config.pca_mean == "twice" else mean
    shared = head.shared.detach().cpu()
    weight = head.subject_weight.detach()[-1].cpu().clone().requires_grad_()
    bias = head.subject_bias.detach()[-1].cpu().clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=0.0)

    def loss_of(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        predicted = (f @ (shared + weight).T + bias) @ basis.T + mean
        present = torch.isfinite(y)
        return masked_squared_error(predicted, y, present) / present.sum().clamp(min=1)

    def check() -> float:
        if checks is None:
            return 0.0
        with torch.no_grad():
            return float(loss_of(*checks))

    best, kept = check(), (weight.detach().clone(), bias.detach().clone())
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="SGD", unit="step", disable=not progress):
        chosen = torch.randperm(len(latent), generator=generator)[:64]
        optimizer.zero_grad()
        loss_of(latent[chosen], measured[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = check()
        if checks is None or found < best:
            best, kept = found, (weight.detach().clone(), bias.detach().clone())
    with torch.no_grad():
        head.subject_weight[-1].copy_(kept[0])
        head.subject_bias[-1].copy_(kept[1])
