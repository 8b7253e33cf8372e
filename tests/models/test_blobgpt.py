"""BlobGPT: the equation, subjects, the two ways to add the mean, folding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.folded_blobgpt import read_blobgpt
from brainfast.models.blobgpt import BlobGPT, BlobGPTConfig
from brainfast.models.llm_vem import LlmVem, LlmVemConfig
from brainfast.tokens import Tokens

CHANNELS, LAYERS, GRIDS = (5, 7, 5), (0, 2, 4), ((2, 3), (2, 3), (1, 2))
V, R, K = 11, 4, 6


def make_head(
    class_token: bool = True, pca_mean: str = "once", trained: bool = True, **options: Any
) -> BlobGPT:
    """A head whose BatchNorm has seen data, so that nothing in it is zero or one."""
    torch.manual_seed(0)
    config = BlobGPTConfig(
        subjects=("s1", "s2", "s3"),
        grids=GRIDS,
        class_token=class_token,
        latent=K,
        components=R,
        pca_mean=pca_mean,
        **options,
    )
    head = BlobGPT(CHANNELS, LAYERS, config, torch.randn(V, R), torch.randn(V))
    if trained:
        with torch.no_grad():
            for norm in head.norms:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
                norm.weight.uniform_(0.5, 2.0)
                norm.bias.normal_()
    return head.eval()


def make_tokens(batch: int = 3, seed: int = 1) -> Tokens:
    rng = np.random.default_rng(seed)
    local = tuple(
        rng.normal(size=(batch, c, *grid)).astype(np.float32)
        for c, grid in zip(CHANNELS, GRIDS, strict=True)
    )
    return Tokens(
        local, tuple(rng.normal(size=(batch, c)).astype(np.float32) for c in CHANNELS), LAYERS
    )


def as_torch(tokens: Tokens) -> Tokens:
    return tokens.map(torch.from_numpy)


def by_hand(head: BlobGPT, tokens: Tokens, subject: int | None) -> np.ndarray:
    """The report's equation in float64 numpy, a token at a time; None: the group."""
    state = {name: value.double().numpy() for name, value in head.state_dict().items()}
    latent = 0.0
    for index in range(len(LAYERS)):
        local, global_ = (np.float64(part[index]) for part in (tokens.local, tokens.global_))
        rows = [local[:, :, y, x] for y in range(local.shape[2]) for x in range(local.shape[3])]
        rows = [global_, *rows] if head.config.class_token else rows
        filters, maps = state[f"filters.{index}"], state[f"maps.{index}"]
        p = sum((row @ filters.T) * maps[:, t] for t, row in enumerate(rows))
        norm = {part: state[f"norms.{index}.{part}"] for part in ("weight", "bias")}
        mean, var = state[f"norms.{index}.running_mean"], state[f"norms.{index}.running_var"]
        latent = latent + ((p - mean) / np.sqrt(var + 1e-5) * norm["weight"] + norm["bias"]) / 3
    activity = latent @ state["shared"].T
    mean = head.bias.double().numpy()
    total = mean.copy()
    if subject is not None:
        activity = activity + latent @ state["subject_weight"][subject].T
        activity = activity + state["subject_bias"][subject]
        total = 2 * mean if head.config.pca_mean == "twice" else total
    return activity @ head.weight.double().numpy().T + total


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("pca_mean", ["once", "twice"])
def test_forward_is_the_equation_for_a_batch_of_mixed_subjects(
    class_token: bool, pca_mean: str
) -> None:
    head, tokens = make_head(class_token, pca_mean), make_tokens(4)
    subjects = [2, -1, 0, 2]
    with torch.no_grad():
        found = head(as_torch(tokens), torch.tensor(subjects)).numpy()
    for row, subject in enumerate(subjects):
        expected = by_hand(head, tokens, None if subject < 0 else subject)[row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_the_twin_is_the_equation_in_float64() -> None:
    head, tokens = make_head().double(), make_tokens()
    chosen = np.array([7, 2])
    latent = head.twin_latent(as_torch(tokens).map(lambda t: t.double()))
    found = head.twin(latent, "s2", chosen)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(head, tokens, 1)[:, chosen], rtol=1e-10)


def test_only_subjects_in_the_batch_get_gradients() -> None:
    head = make_head()
    head(as_torch(make_tokens(3)), torch.tensor([1, 1, -1])).square().sum().backward()
    grad = head.subject_weight.grad
    assert grad is not None
    assert (grad[1] != 0).any()
    assert (grad[[0, 2]] == 0).all()
    assert head.weight.grad is None  # the embedding is frozen


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("pca_mean", ["once", "twice"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_folded_subject_answers_as_the_head(
    class_token: bool, pca_mean: str, precision: str
) -> None:
    head, tokens = make_head(class_token, pca_mean), make_tokens(5)
    for subject, index in (("s1", 0), ("s3", 2), ("group", None)):
        folded = head.fold_subject(subject).with_precision(precision)
        expected = by_hand(head, tokens, index)
        error = (folded.run(tokens) - expected) / expected.std()
        if precision == "fp32":
            assert np.abs(error).max() < 1e-5
        else:
            assert np.sqrt(np.square(error).mean()) < 1e-2


def test_a_subset_of_vertices_has_the_same_bits() -> None:
    head, tokens = make_head(), make_tokens(3)
    folded = head.fold_subject("s1")
    chosen = [9, 0, 4]
    assert np.array_equal(folded.take(chosen).run(tokens), folded.run(tokens)[:, chosen])
    rows = np.array([9, 0, 4])
    assert np.array_equal(head.fold_subject("s1", rows).weight, folded.weight[rows])


def test_a_template_scores_without_the_cortex() -> None:
    folded, tokens = make_head().fold_subject("s2"), make_tokens(4)
    weights = np.random.default_rng(3).normal(size=(2, V)).astype(np.float32)
    expected = folded.run(tokens) @ weights.T
    found = folded.template(weights).score(folded.align(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_contributions_of_the_layers_sum_to_the_response() -> None:
    folded, tokens = make_head().fold_subject("s2"), make_tokens(2)
    parts = folded.contributions(tokens)
    assert parts.shape == (2, 3, V)
    np.testing.assert_allclose(
        parts.sum(axis=1) + folded.offset, folded.run(tokens), rtol=1e-4, atol=1e-5
    )


def test_arrays_read_back_and_refuse_what_is_missing() -> None:
    folded, tokens = make_head().fold_subject("s1"), make_tokens()
    arrays = folded.projection.arrays()
    arrays |= {"subject.s1.weight": folded.weight, "subject.s1.bias": folded.bias}
    about: dict[str, Any] = {
        "name": "file",
        "layers": LAYERS,
        "grids": GRIDS,
        "class_token": True,
        "subjects": ["s1"],
    }
    again = read_blobgpt(arrays, **about)["s1"]
    assert np.array_equal(again.run(tokens), folded.run(tokens))
    with pytest.raises(BrainfastError, match=r"missing \['maps.2'\]"):
        read_blobgpt({n: a for n, a in arrays.items() if n != "maps.2"}, **about)
    broken = arrays | {"maps.2": arrays["maps.2"][:, 1:].copy()}
    with pytest.raises(BrainfastError, match="layer 2"):
        read_blobgpt(broken, **about)
    infinite = arrays | {"latent_bias": np.full(K, np.inf, np.float32)}
    with pytest.raises(BrainfastError, match="latent_bias"):
        read_blobgpt(infinite, **about)


def test_tokens_that_are_not_finite_name_their_layer() -> None:
    folded, tokens = make_head().fold_subject("s1"), make_tokens()
    tokens.local[1][0, 0, 0, 0] = np.nan
    with pytest.raises(BrainfastError, match=r"local\.2"):
        folded.run(tokens)


def test_one_image_cannot_be_normalised_in_training() -> None:
    head = make_head().train()
    with pytest.raises(BrainfastError, match="BatchNorm"):
        head(as_torch(make_tokens(1)), torch.tensor([0]))


def test_bad_input_is_one_line() -> None:
    head = make_head()
    with pytest.raises(BrainfastError, match="one of s1, s2, s3, group"):
        head.subject_index("s9")
    tokens = as_torch(make_tokens())
    other = Tokens(tokens.local, tokens.global_, (0, 2, 5))
    with pytest.raises(BrainfastError, match="use the trunk"):
        head.project(other)
    with pytest.raises(BrainfastError, match="fit the PCA"):
        BlobGPT(CHANNELS, LAYERS, head.config, torch.zeros(V, R + 1), torch.zeros(V))
    config = head.config.model_copy(update={"subjects": ("a", "group")})
    with pytest.raises(BrainfastError, match="names that differ"):
        BlobGPT(CHANNELS, LAYERS, config, torch.zeros(V, R), torch.zeros(V))
    folded = head.fold_subject("s1")
    with pytest.raises(BrainfastError, match="vertices"):
        folded.take([V])
    with pytest.raises(BrainfastError, match="weights"):
        folded.template(np.zeros((1, V + 1), np.float32))
    with pytest.raises(BrainfastError, match="expected shapes"):
        replace(folded, bias=folded.bias[:-1])


def test_similarities_are_cosines_over_the_temperature() -> None:
    config = LlmVemConfig(
        subjects=("s1",),
        grids=GRIDS,
        class_token=True,
        latent=K,
        components=R,
        text_dim=8,
        temperature=0.5,
    )
    torch.manual_seed(0)
    head = LlmVem(CHANNELS, LAYERS, config, torch.randn(V, R), torch.randn(V))
    latent, text = torch.randn(3, K), torch.randn(4, 8)
    latent[1] = 0
    found = head.similarities(latent, text).detach().numpy()
    seen = (latent @ head.text.T).detach().numpy()
    for row in (0, 2):
        for column in range(4):
            a, b = seen[row], text[column].numpy()
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found[row, column] == pytest.approx(cosine / 0.5, rel=1e-4)
    assert (found[1] == 0).all()
