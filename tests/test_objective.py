"""Objectives: what they say, and that a folded one scores as the full response does."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import brainfast
from brainfast.bench.made_up import made_up_head
from brainfast.errors import BrainfastError
from brainfast.folded import AlignedTokens
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT, Latent
from brainfast.objective import Objective
from brainfast.response import Response
from brainfast.target_pattern import TargetPattern
from brainfast.vertex_space import VertexSpace

V, LEFT = 40, 22


def make_space() -> VertexSpace:
    """Regions that overlap, on both hemispheres but for EBA, which is on the right."""
    index = np.arange(V)
    masks = {
        "V1v": index % 5 == 0,
        "V1d": index % 7 == 0,
        "FFA-1": (index > 10) & (index < 30),
        "PPA": index % 3 == 1,
        "EBA": index > 30,
        "own-2": index < 4,
    }
    rng = np.random.default_rng(0)
    lh, rh = (np.sort(rng.choice(10242, n, replace=False)) for n in (LEFT, V - LEFT))
    return VertexSpace("fsaverage5", lh, rh, masks, "subj01")


SPACE = make_space()


def mean_of(*names: str) -> np.ndarray:
    chosen = np.unique(np.concatenate([SPACE.roi(name) for name in names]))
    return np.isin(np.arange(V), chosen) / len(chosen)


def make_factortopy() -> tuple[SimpleNamespace, AlignedTokens]:
    head = made_up_head(V, 2, 5, grid=(4, 4))
    rng = np.random.default_rng(1)
    local = rng.standard_normal((6, 2, 5, 4, 4), np.float32)
    aligned = AlignedTokens(local, rng.standard_normal((6, 2, 5), np.float32))
    return SimpleNamespace(head=head, space=SPACE, template=head.template), aligned


def make_blobgpt() -> tuple[SimpleNamespace, Latent]:
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    projection = BlobProjection((normal(9, 4),), (normal(9, 5),), normal(9), (0,), ((2, 2),), True)
    head = FoldedBlobGPT(projection, normal(V, 9), normal(V))
    return SimpleNamespace(head=head, space=SPACE, template=head.template), Latent(normal(6, 9))


ENGINES = {"factortopy": make_factortopy(), "blobgpt": make_blobgpt()}
engines = pytest.mark.parametrize("engine", ENGINES)

# Expressions with the weights that they mean, built side by side.
LEAVES = [
    ("V1v", mean_of("V1v")),
    ("v1", mean_of("V1v", "V1d")),
    ("lh.FFA", mean_of("lh.FFA-1")),
    ("FFA-1", mean_of("FFA-1")),
    ("own-2", mean_of("own-2")),
    ("rh.PPA", mean_of("rh.PPA")),
    ("mean(EBA)", mean_of("EBA")),
    ("mean(EBA, PPA)", mean_of("EBA", "PPA")),
    ("all", np.full(V, 1 / V)),
]
NUMBERS = st.sampled_from([("2", 2.0), ("0.5", 0.5), (".25", 0.25), ("1e1", 10.0), ("-3", -3.0)])


def larger(inner):
    signs = st.sampled_from(["+", "-", " - ", " + "])
    return st.one_of(
        st.tuples(inner, signs, inner).map(
            lambda t: (
                f"{t[0][0]}{t[1]}({t[2][0]})",
                t[0][1] + t[2][1] if "+" in t[1] else t[0][1] - t[2][1],
            )
        ),
        st.tuples(NUMBERS, inner).map(lambda t: (f"{t[0][0]}*({t[1][0]})", t[0][1] * t[1][1])),
        st.tuples(inner, NUMBERS).map(lambda t: (f"({t[0][0]}) * {t[1][0]}", t[1][1] * t[0][1])),
        inner.map(lambda e: (f"-({e[0]})", -e[1])),
    )


EXPRESSIONS = st.recursive(st.sampled_from(LEAVES), larger, max_leaves=6)


@settings(max_examples=60)
@given(expression=EXPRESSIONS)
def test_an_expression_means_its_weights(expression):
    text, weights = expression
    assume(np.abs(weights).max() > 1e-3)
    found = Objective(text).weights(SPACE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights[None], rtol=1e-6, atol=1e-7)


@engines
@settings(max_examples=40)
@given(expressions=st.lists(EXPRESSIONS, min_size=1, max_size=4))
def test_a_folded_objective_scores_as_the_full_response(engine, expressions):
    assume(all(np.abs(weights).max() > 1e-3 for _, weights in expressions))
    place, aligned = ENGINES[engine]
    expected = place.head.readout(aligned) @ np.stack([w for _, w in expressions]).T
    found = Objective([text for text, _ in expressions]).fold(place).score(aligned)
    assert found.shape == (6, len(expressions))
    scale = max(float(np.abs(weights).sum()) for _, weights in expressions)
    assert np.abs(found - expected).max() <= 2e-5 * scale * np.abs(aligned.flat()).max() * 9


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("FFA - PPA", mean_of("FFA-1") - mean_of("PPA")),
        ("FFA-PPA", mean_of("FFA-1") - mean_of("PPA")),
        ("FFA-1-PPA", mean_of("FFA-1") - mean_of("PPA")),
        ("V1v-0.5*EBA", mean_of("V1v") - 0.5 * mean_of("EBA")),
        ("own-2-own-2*2", -mean_of("own-2")),
        ("PPA - EBA - V1v", mean_of("PPA") - mean_of("EBA") - mean_of("V1v")),
        ("1 + 1*PPA", None),
        ("2*3*PPA", 6 * mean_of("PPA")),
        ("(1 + 2)*PPA", 3 * mean_of("PPA")),
        ("--PPA", mean_of("PPA")),
    ],
)
def test_hyphens_and_order(text, weights):
    if weights is None:
        with pytest.raises(BrainfastError, match="a number alone changes no choice"):
            Objective(text).weights(SPACE)
    else:
        np.testing.assert_allclose(Objective(text).weights(SPACE)[0], weights, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a region, a number or a parenthesis, got the end at character 1 of ''"),
        ("FFA - * PPA", "a region.*got '[*]' at character 7"),
        ("FFA PPA", "an operator, got 'PPA' at character 5"),
        ("(FFA", r"'\)', got the end at character 5"),
        ("FFA)", r"an operator, got '\)' at character 4"),
        ("FFA / 2", "names of regions, numbers.*got '/' at character 5"),
        ("FFA * PPA", "a number on one side of a product, got '[*]' at character 5"),
        ("FFA - 1", "regions on both sides.*got '-' at character 5"),
        ("2 * 3", r"a weighted sum of regions, got '2 \* 3'"),
        ("mean(2)", "the name of a region, got '2' at character 6"),
        ("mean(FFA, )", r"the name of a region, got '\)' at character 11"),
        ("FFA - FFA", "finite weights that are not all zero, got zeros in 'FFA - FFA'"),
        ("1e999*FFA", "a finite number, got '1e999' at character 1"),
        ("(" * 60 + "FFA" + ")" * 60, "at most 50 parentheses"),
        ("OFA", r"a region that subj01 has \(V1, V1v, V1d.*got 'OFA'"),
        ("FFA-2", "a region that subj01 has.*got 'FFA-2'"),
        ("__import__('os')", "a region that subj01 has.*got '__import__'"),
        ("lh.EBA", "a region that subj01 has"),
    ],
)
def test_a_wrong_expression_says_where(text, words):
    with pytest.raises(BrainfastError, match=words) as found:
        Objective(text).weights(SPACE)
    assert "\n" not in str(found.value)


@settings(max_examples=200)
@given(st.text(alphabet="FA-1PV.mean()*+, 2e", max_size=25))
def test_any_text_is_weights_or_one_line(text):
    message = ""
    try:
        assert np.isfinite(Objective(text).weights(SPACE)).all()
    except BrainfastError as error:
        message = str(error)
    assert "\n" not in message


def test_arrays_and_expressions_together():
    array = np.linspace(-1, 1, V)
    objective = brainfast.Objective([array, "PPA", Objective("EBA")])
    assert objective.names == ("weights 0", "PPA", "EBA")
    expected = np.stack([array, mean_of("PPA"), mean_of("EBA")])
    np.testing.assert_allclose(objective.weights(SPACE), expected, atol=1e-7)
    assert len(Objective(np.stack([array, -array]))) == 2
    assert Objective.of(objective) is objective


def test_weights_from_a_pair_of_gifti_files(tmp_path):
    values = np.random.default_rng(3).standard_normal((1, V)).astype(np.float32)
    Response(values, SPACE).save(tmp_path / "wanted")  # whole meshes, NaN elsewhere
    pair = [tmp_path / f"wanted_hemi-{letter}.func.gii" for letter in "LR"]
    np.testing.assert_array_equal(Objective.from_gifti(*pair).weights(SPACE), values)
    few = VertexSpace("fsaverage", SPACE.lh[:18], SPACE.rh)
    with pytest.raises(BrainfastError, match=r"weights of lh: expected 18 vertices, or the 163842"):
        Objective.from_gifti(*pair).weights(few)
    pair[0].write_text("not a GIFTI file")
    with pytest.raises(BrainfastError, match=re.escape(str(pair[0]))):
        Objective.from_gifti(*pair)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (np.zeros(V), "that are not all zero"),
        (np.full(V, np.nan), "NaN or infinity in 'weights 0'"),
        (np.ones(V - 1), f"expected {V} weights, one a vertex, got {V - 1}"),
        (np.ones((2, 2, V)), "an expression such as"),
        ([], "an expression such as"),
        (None, "an expression such as"),
        ({"FFA": 1}, "an expression such as"),
    ],
)
def test_bad_weights(what, words):
    with pytest.raises(BrainfastError, match=words):
        Objective(what).weights(SPACE)


@engines
@pytest.mark.parametrize("vertices", [None, ["V1v", "PPA"]])
def test_a_pattern_is_scored_on_exactly_its_vertices(engine, vertices):
    place, aligned = ENGINES[engine]
    target = np.random.default_rng(4).standard_normal(V)
    target[[0, 16, 31]] = np.nan
    chosen = np.intersect1d(SPACE.select(vertices), np.flatnonzero(np.isfinite(target)))
    response = place.head.readout(aligned)[:, chosen].astype(np.float64)
    correlation = [np.corrcoef(row, target[chosen])[0, 1] for row in response]
    error = np.square(response - target[chosen]).mean(axis=1)
    for kind, expected in (("correlation", correlation), ("squared error", -error)):
        found = TargetPattern(target, kind, vertices).fold(place).score(aligned)
        assert found.shape == (6, 1)
        np.testing.assert_allclose(found[:, 0], expected, rtol=2e-5, atol=2e-5)


@engines
def test_a_response_correlates_with_itself(engine):
    place, aligned = ENGINES[engine]
    response = place.head.readout(aligned)
    for row in range(3):
        scores = TargetPattern(response[row]).fold(place).score(aligned)
        assert scores.argmax() == row
        assert scores[row, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(V - 1),), f"target: expected {V} responses"),
        ((np.full(V, np.nan),), "known responses that differ, got 0 known vertices"),
        ((np.ones(V),), f"got {V} known vertices of one value"),
        ((np.full(V, np.nan), "squared error"), "a known response, got 0"),
        ((np.ones(V), "cosine"), "kind: expected 'correlation' or 'squared error'"),
        ((np.ones(V), "squared error", "OFA"), "a region that subj01 has"),
    ],
)
def test_bad_patterns(arguments, words):
    with pytest.raises(BrainfastError, match=words):
        TargetPattern(*arguments).fold(ENGINES["blobgpt"][0])


def test_a_list_of_objectives_is_all_of_them() -> None:
    several = Objective([Objective("PPA"), Objective(["V1v", "EBA"]), np.ones(V)])
    assert several.names == ("PPA", "V1v", "EBA", "weights 3")
    np.testing.assert_allclose(several.weights(SPACE)[0], mean_of("PPA"), rtol=1e-6)
