"""FactorTopy against the paper's equations written out by hand, and its options."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.models import factortopy
from brainfast.models.factortopy import FactorTopy, positional_encoding
from brainfast.models.factortopy_config import FactorTopyConfig
from brainfast.models.registry import model_class
from brainfast.tokens import Tokens

CHANNELS, LAYERS, GRID = (7, 5), (1, 4), (4, 4)
OPTIONS = {
    "paper": {},
    "dual bottleneck": {"bottleneck": "dual"},
    "free selectors": {"topology": False},
    "no layer selector": {"layer_selector": False},
    "no space selector": {"space_selector": False},
    "no scale selector": {"scale_selector": False},
    "three samples": {"samples": 3},
    "standardised": {"standardize": True},
    "all at once": {"bottleneck": "dual", "samples": 2, "standardize": True, "topology": False},
}


def make_tokens(seed: int = 0, images: int = 3) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        tuple(torch.randn(images, c, 4, 4, generator=generator) for c in CHANNELS),
        tuple(torch.randn(images, c, generator=generator) for c in CHANNELS),
        LAYERS,
    )


def make_model(seed: int = 0, vertices: int = 11, **options: object) -> FactorTopy:
    torch.manual_seed(seed)
    coordinates = torch.randn(vertices, 3) * 40
    model = FactorTopy(coordinates, CHANNELS, LAYERS, FactorTopyConfig(dim=6, grid=GRID, **options))
    with torch.no_grad():
        for parameter in model.selector_parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for index in range(len(CHANNELS)):
            for scale in ("local", "global"):
                model.get_buffer(f"mean_{scale}_{index}").normal_()
                model.get_buffer(f"std_{scale}_{index}").uniform_(0.5, 2.0)
    return model


def test_positional_encoding_is_the_stated_formula() -> None:
    coordinates = torch.tensor([[0.0, 0.0, 5.0], [10.0, 20.0, 5.0], [5.0, 10.0, 5.0]])
    encoding = positional_encoding(coordinates)
    assert encoding.shape == (3, 192)
    # Vertex 2, axis y: (10 - 0) * 100 / 20 = 50; frequency 3: 1000^(-3/32).
    phase = 50.0 * 1000.0 ** (-3 / 32)
    assert encoding[2, 64 + 6].item() == pytest.approx(math.sin(phase), abs=1e-6)
    assert encoding[2, 64 + 7].item() == pytest.approx(math.cos(phase), abs=1e-6)
    # Vertex 1, axis x: 10 * 100 / 20, since the extent is the largest of the three.
    assert encoding[1, 0].item() == pytest.approx(math.sin(50.0), abs=1e-6)


@pytest.mark.parametrize("coordinates", [torch.ones(1, 3), torch.tensor([[0.0, 1, 2]] * 4)])
def test_constant_axes_and_single_vertices_give_no_nan(coordinates: torch.Tensor) -> None:
    assert torch.isfinite(positional_encoding(coordinates)).all()


def test_training_starts_at_centre_uniform_and_half() -> None:
    model = FactorTopy(torch.randn(9, 3), CHANNELS, LAYERS)
    space, layer, scale = model.selectors()
    assert torch.equal(space, torch.zeros(9, 2))
    assert torch.allclose(layer, torch.full((9, 2), 0.5))
    assert torch.allclose(scale, torch.full((9,), 0.5))


def test_readout_starts_as_a_linear_layer_does() -> None:
    model = FactorTopy(torch.randn(2000, 3), CHANNELS, LAYERS, FactorTopyConfig(dim=16))
    for parameter in (model.weight, model.bias):
        assert parameter.abs().max() <= 0.25
        assert parameter.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)


def interpolate(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear sample of [D,H,W] at x, y in -1..1, zeros outside, one corner a term."""
    _, height, width = image.shape
    column, row = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
    value = np.zeros(len(image))
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                value += image[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def test_forward_is_equation_one_with_the_mean_over_channels() -> None:
    model = make_model()
    tokens = make_tokens()
    found = model(tokens).detach().numpy()
    space, layer, scale = (part.detach().double().numpy() for part in model.selectors())
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    for image in range(3):
        for vertex in range(model.V):
            mixed = np.zeros(6)
            for index in range(2):
                matrix = model.bottleneck_local[index].detach().double().numpy()
                patch = np.einsum("dc,chw->dhw", matrix, tokens.local[index][image].numpy())
                summary = matrix @ tokens.global_[index][image].numpy()
                local = interpolate(patch, *space[vertex])
                part = (1 - scale[vertex]) * local + scale[vertex] * summary
                mixed += layer[vertex, index] * part
            expected = (mixed * weight[vertex]).mean() + bias[vertex]
            assert found[image, vertex] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_folding_changes_no_answer(name: str) -> None:
    model = make_model(**OPTIONS[name])
    tokens = make_tokens()
    expected = model(tokens).detach().numpy()
    found = model.fold().run(tokens.map(lambda array: array.numpy()))
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_learns(name: str) -> None:
    model = make_model(**OPTIONS[name])
    model(make_tokens()).square().sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 0, label


def test_averaged_axes_are_averages() -> None:
    tokens = make_tokens()
    model = make_model(space_selector=False, scale_selector=False, layer_selector=False)
    mean = 0.0
    for index in range(2):
        matrix = model.bottleneck_local[index]
        local = tokens.local[index].mean(dim=(2, 3)) @ matrix.T
        mean = mean + 0.5 * (0.5 * local + 0.5 * tokens.global_[index] @ matrix.T)
    expected = (mean[:, None] * model.weight).mean(dim=2) + model.bias
    assert torch.allclose(model(tokens), expected, atol=1e-6)


def test_samples_start_apart() -> None:
    model = FactorTopy(torch.randn(5, 3), CHANNELS, LAYERS, FactorTopyConfig(samples=3))
    space = model.selectors().space.reshape(5, 3, 2)
    assert (space[:, 0] - space[:, 1]).abs().max() > 0


def test_a_channel_that_never_varies_is_not_divided_by_zero() -> None:
    model = make_model(standardize=True)
    moments = [(torch.zeros(c), torch.zeros(c)) for c in CHANNELS]
    model.set_moments(moments, moments)
    assert torch.isfinite(model(make_tokens())).all()


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        (torch.zeros(4, 2), "[V,3]"),
        (torch.zeros(0, 3), "V >= 1"),
        (torch.full((4, 3), torch.nan), "NaN"),
    ],
)
def test_bad_coordinates_are_refused(coordinates: torch.Tensor, said: str) -> None:
    with pytest.raises(BrainfastError, match="coordinates") as error:
        FactorTopy(coordinates, CHANNELS, LAYERS)
    assert said in str(error.value)


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(BrainfastError, match="factortopy"):
        model_class("factor-topy")
    with pytest.raises(ValueError, match="extra_forbidden"):
        FactorTopyConfig(dims=3)  # type: ignore[call-arg]


def gradients(model: FactorTopy, response: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(response.square().sum(), parameters)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("precision", "bar"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_training_takes_the_workspace_and_keeps_the_function(
    options: dict[str, object], precision: str, bar: float
) -> None:
    model, tokens = make_model(**options), make_tokens()
    names = set(model.state_dict())
    expected = gradients(model, model.eval()(tokens))
    assert not model._workspaces
    model.train().set_head_precision(precision)
    for _ in range(2):
        found = gradients(model, model(tokens))
        for name, grad in found.items():
            assert (grad - expected[name]).norm() <= bar * expected[name].norm() + 1e-6, name
    assert [workspace.precision for workspace in model._workspaces] == [precision]
    assert set(model.state_dict()) == names


def test_several_graphs_may_be_alive_in_training() -> None:
    model = make_model()
    apart = [gradients(model, model(make_tokens(seed))) for seed in (0, 1)]
    both = [model(make_tokens(seed)) for seed in (0, 1)]
    for response, expected in zip(both, apart, strict=True):
        found = gradients(model, response)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(model._workspaces) == 2


def test_copies_and_other_dtypes_leave_the_workspace_behind() -> None:
    model, tokens = make_model(), make_tokens()
    expected = model(tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens), expected)
    assert model._workspaces
    model.double()
    assert not model._workspaces
    double = Tokens(
        tuple(part.double() for part in tokens.local),
        tuple(part.double() for part in tokens.global_),
        tokens.layers,
    )
    response = model(double)
    assert not model._workspaces
    torch.testing.assert_close(response.float(), expected)
    response.sum().backward()


def test_without_gradients_the_answer_is_strict_float32() -> None:
    model, tokens = make_model(), make_tokens()
    model.set_head_precision("bf16")
    with torch.no_grad():
        answer = model(tokens)
    assert torch.equal(answer, model.eval()(tokens))
    assert not torch.equal(answer, model.train()(tokens))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bottleneck": "dual", "standardize": True},
        {"space_selector": False, "standardize": True},
    ],
)
def test_alignment_of_all_layers_at_once_is_that_of_each(monkeypatch, options):
    """A GPU's way, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    model = FactorTopy(
        normal(9, 3), (7, 7, 7), (0, 2, 5), FactorTopyConfig(dim=5, grid=(3, 4), **options)
    )
    moments = [[(normal(7), normal(7).abs() + 0.5) for _ in range(3)] for _ in range(2)]
    model.set_moments(*moments)
    tokens = Tokens(
        tuple(normal(2, 7, 3, 4) for _ in range(3)),
        tuple(normal(2, 7) for _ in range(3)),
        (0, 2, 5),
    )

    def aligned():
        model.zero_grad()
        local, global_ = model.align(tokens)
        (local.square().sum() + global_.pow(3).sum()).backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [local.detach(), global_.detach(), *grads]

    expected = aligned()
    monkeypatch.setattr(factortopy, "_better_at_once", lambda _: True)
    found = aligned()
    assert len(found) == len(expected) > 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
