"""LLM-VEM on a simulated group whose text vectors carry what drives the responses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brainfast.data import Algonauts, Group
from brainfast.data.simulated_group import TEXT_FILE, simulate_group
from brainfast.data.text import TextEmbeddings
from brainfast.training import GroupRecipe, fit_group
from brainfast.training.group_recipes import Alignment


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Group, TextEmbeddings]:
    root = tmp_path_factory.mktemp("group")
    simulate_group(root, subjects=2, n_images=80, n_shared=20, vertices=100, size=48)
    subjects = [Algonauts(folder) for folder in sorted(root.glob("subj*"))]
    return Group(subjects), TextEmbeddings.read(root / TEXT_FILE)


def test_the_loss_falls_and_unseen_images_find_their_texts(
    group: tuple[Group, TextEmbeddings], tmp_path: Path
) -> None:
    data, texts = group
    first = GroupRecipe(
        name="trial",
        batch=16,
        steps=60,
        warm_up=5,
        check_every=30,
        lr=1e-2,
        crop_scale=(1.0, 1.0),
        weight_decay=0.5,
        head={"latent": 32, "components": 8, "dropout": 0.1},
        trunk={"layers": (0, 1), "size": 48},
    )
    second = first.changed(
        {
            "phase": 2,
            "unfreeze": ("attn",),
            "lr": 3e-3,
            "steps": 60,
            "check_every": 15,
            "alignment": Alignment(strength=1.0),
        }
    )
    start = fit_group(
        "blobgpt",
        data,
        trunk="vit_tiny_patch16_224",
        recipe=first,
        pretrained=False,
        work=tmp_path / "1",
        device="cpu",
        progress=False,
    )
    encoder = fit_group(
        "llm-vem",
        data,
        phase=2,
        start=start,
        text=texts,
        recipe=second,
        work=tmp_path / "2",
        device="cpu",
        progress=False,
    )
    losses = [row["alignment"] for row in encoder.history]
    assert losses[-1] < 0.6 * losses[0]
    unseen = {
        str(split.image_ids[row]): split.image(row)
        for split in (data.val, data.heldout)
        for row in split.unique_rows
    }
    with torch.no_grad():
        tokens = next(iter(encoder.trunk.features(list(unseen.values()), len(unseen))))
        latent = encoder.head.latent(encoder.head.project(tokens))
        wanted = torch.from_numpy(texts.of(list(unseen)))
        similarities = encoder.head.similarities(latent, wanted)
    ranks = (similarities >= similarities.diagonal()[:, None]).sum(dim=1).double()
    chance = (len(unseen) + 1) / 2
    assert ranks.mean().item() < 0.6 * chance
