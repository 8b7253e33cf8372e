"""LLM-VEM on small groups: latents are drawn towards texts, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainfast.data import Group
from brainfast.data.text import TextEmbeddings
from brainfast.errors import BrainfastError
from brainfast.group_encoder import GroupEncoder
from brainfast.training.group_recipes import Alignment

PHASE_2 = {"phase": 2, "unfreeze": ("attn",), "lr": 1e-3}


def _texts(group: Group, seed: int = 0) -> TextEmbeddings:
    """A vector an image that tells its quarters, mixed by a random matrix."""
    splits = (group.train, group.val, group.heldout)
    ids, vectors = [], []
    mix = np.random.default_rng(seed).normal(size=(4, 10))
    for split in splits:
        for index in range(len(split)):
            image = np.asarray(split.image(index), dtype=np.float64)
            quarters = image.reshape(2, 16, 2, 16, 3).mean(axis=(1, 3, 4)).reshape(4)
            ids.append(str(split.image_ids[index]))
            vectors.append((quarters - 100) / 40 @ mix)
    unique = dict(zip(ids, vectors, strict=True))
    embedding = np.stack(list(unique.values())).astype(np.float32)
    return TextEmbeddings(embedding, tuple(unique))


def test_alignment_draws_latents_to_their_texts(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    texts = _texts(group)
    start = fit_tiny(tmp_path / "1", {"steps": 30, "check_every": 30}, group)
    changes = {**PHASE_2, "steps": 60, "check_every": 20, "lr": 5e-3}
    changes |= {"alignment": Alignment(strength=1.0), "crop_scale": (1.0, 1.0)}
    aligned = fit_tiny(
        tmp_path / "2", changes, group, model="llm-vem", phase=2, start=start, text=texts
    )
    assert aligned.card.model == "llm-vem"
    losses = [row["alignment"] for row in aligned.history]
    assert losses[-1] < 0.7 * losses[0]
    unseen = {
        str(split.image_ids[row]): split.image(row)
        for split in (group.val, group.heldout)
        for row in split.unique_rows
    }
    with torch.no_grad():
        tokens = next(iter(aligned.trunk.features(list(unseen.values()), 64)))
        latent = aligned.head.latent(aligned.head.project(tokens))
        wanted = torch.from_numpy(texts.of(list(unseen)))
        similarities = aligned.head.similarities(latent, wanted)
    ranks = (similarities >= similarities.diagonal()[:, None]).sum(dim=1).double()
    chance = (len(unseen) + 1) / 2
    assert ranks.mean().item() < 0.6 * chance


def test_a_frozen_head_stays_as_it_is(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    start = fit_tiny(tmp_path / "1", group=group)
    changes = {**PHASE_2, "freeze_head": True, "alignment": Alignment()}
    options = {"model": "llm-vem", "phase": 2, "start": start, "text": _texts(group)}
    frozen = fit_tiny(tmp_path / "2", changes, group, **options)
    before, after = start.head.state_dict(), frozen.head.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert frozen.card.trunk.weights_hash != start.card.trunk.weights_hash


def test_texts_of_other_images_are_refused(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    start = fit_tiny(tmp_path / "1", {"steps": 1, "check_every": 1}, group)
    texts = _texts(group)
    fewer = TextEmbeddings(texts.embedding[5:], texts.image_ids[5:])
    with pytest.raises(BrainfastError, match="image-"):
        fit_tiny(
            tmp_path / "2",
            {**PHASE_2, "alignment": Alignment()},
            group,
            model="llm-vem",
            phase=2,
            start=start,
            text=fewer,
        )


def test_either_model_goes_on_from_the_other_and_loads_again(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    start = fit_tiny(tmp_path / "1", {"steps": 2, "check_every": 2}, group)
    changes = {**PHASE_2, "steps": 2, "check_every": 2}
    aligned = fit_tiny(
        tmp_path / "2",
        {**changes, "alignment": Alignment(temperature=0.5)},
        group,
        model="llm-vem",
        phase=2,
        start=start,
        text=_texts(group),
    )
    assert aligned.head.log_temperature.exp().item() == pytest.approx(0.5)
    plain = fit_tiny(tmp_path / "3", changes, group, phase=2, start=aligned)
    for encoder, model in ((aligned, "llm-vem"), (plain, "blobgpt")):
        again = GroupEncoder.load(encoder.save(tmp_path / model))
        assert again.card.model == model
        assert again.card.model_hash == encoder.card.model_hash
