from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, linregress

from brainfast.analysis.hierarchy import centre_of_mass, confidence, hierarchy_slope
from brainfast.errors import BrainfastError
from brainfast.vertex_space import VertexSpace

REGIONS = {"V1v": 0, "V2d": 1, "V3v": 2, "OPA": 3, "EBA": 4}


def space(names=tuple(REGIONS), each=3):
    which = np.repeat([REGIONS[name] for name in names], each)
    rois = {name: which == REGIONS[name] for name in names}
    return VertexSpace("custom", np.arange(which.size), np.arange(0), rois)


def test_confidence_extremes():
    np.testing.assert_allclose(confidence(np.eye(5)), 1)
    np.testing.assert_allclose(confidence(np.full((2, 40), 1 / 40)), 0, atol=1e-12)
    np.testing.assert_array_equal(confidence(np.ones((3, 1))), 1)
    assert confidence(np.zeros((0, 4))).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=40).filter(lambda w: sum(w) > 1e-3))
def test_confidence_is_one_minus_the_relative_entropy(values):
    weights = np.array([values]) / np.sum(values)
    want = 1 - entropy(weights[0]) / np.log(len(values))
    assert confidence(weights)[0] == pytest.approx(want, abs=1e-9)


def test_centre_of_mass_runs_from_first_to_last_layer():
    np.testing.assert_allclose(centre_of_mass(np.eye(4)), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(centre_of_mass([[0.5, 0.25, 0.25]]), [0.375])
    np.testing.assert_array_equal(centre_of_mass(np.ones((2, 1))), 0)


def test_slope_of_a_constructed_line():
    level = np.repeat([0, 0.33, 0.33, 0.66, 1], 3)
    place = 0.2 + 0.5 * level  # two layers: the centre of mass is the second one's weight
    line = hierarchy_slope(np.stack([1 - place, place], axis=1), space())
    assert (line.slope, line.b0, line.b1) == pytest.approx((0.5, 0.2, 0.7))
    assert line.missing == ()
    assert line.vertices == {"V1": 3, "V2": 3, "V3": 3, "OPA": 3, "EBA": 3}


def test_slope_is_ordinary_least_squares():
    layer = np.random.default_rng(0).dirichlet(np.ones(6), size=15)
    want = linregress(np.repeat([0, 0.33, 0.33, 0.66, 1], 3), layer @ (np.arange(6) / 5))
    line = hierarchy_slope(layer, space())
    assert (line.slope, line.b0) == pytest.approx((want.slope, want.intercept))


def test_missing_regions_are_listed_and_one_level_is_not_a_line():
    layer = np.tile([[1.0, 0.0]], (6, 1))
    assert hierarchy_slope(layer, space(["V1v", "EBA"])).missing == ("V2", "V3", "OPA")
    with pytest.raises(BrainfastError, match="without V1, OPA, EBA"):
        hierarchy_slope(layer, space(["V2d", "V3v"]))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (np.ones((2, 3)), "sums to 3"),
        (np.array([[1.5, -0.5]]), "negative"),
        (np.array([[np.nan, 1.0]]), "not finite"),
        (np.ones(3), r"size \[3\]"),
        (np.ones((3, 0)), "size"),
    ],
)
def test_bad_layer_weights(layer, message):
    with pytest.raises(BrainfastError, match=message):
        confidence(layer)


def test_layer_of_another_space():
    with pytest.raises(BrainfastError, match="15 vertices"):
        hierarchy_slope(np.ones((4, 1)), space())
