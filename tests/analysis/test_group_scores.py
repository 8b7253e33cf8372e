import numpy as np
import pytest

from brainfast.analysis.group_scores import GroupAccumulator, group_summary
from brainfast.analysis.scores import pearson, r2, score
from brainfast.errors import BrainfastError

SUBJECTS = ("one", "two")
V = 7


def trials(seed, n, columns=V):
    random = np.random.default_rng(seed)
    measured = random.standard_normal((n, columns)) + 30
    return measured + random.standard_normal((n, columns)), measured


def test_summary_pools_vertices_and_not_subjects():
    ceiling = np.linspace(0.2, 0.9, V)
    small, large = trials(0, 30, 2), trials(1, 50)
    scores = {
        "one": score(*small, ceiling=ceiling[:2]),
        "two": score(*large, ceiling=ceiling),
    }
    found = group_summary(scores)
    both = np.concatenate([r2(*small), r2(*large)])
    assert found["subjects"] == 2
    assert found["n"] == 80
    assert found["vertices"] == 9
    assert found["r2_median"] == pytest.approx(np.median(both))
    assert found["r2_mean"] == pytest.approx(both.mean())
    assert found["r2_median"] != pytest.approx(
        np.mean([np.median(r2(*small)), np.median(r2(*large))])
    )
    # Algonauts' own words: negative r is 0, squared, over the ceiling, at most 1, mean.
    r = np.concatenate([pearson(*small), pearson(*large)])
    limit = np.concatenate([ceiling[:2], ceiling])
    expected = np.mean([min(1, max(0, one) ** 2 / c) for one, c in zip(r, limit, strict=True)])
    assert found["normalised_mean"] == pytest.approx(expected)


def test_summary_leaves_out_what_has_no_score():
    predicted, measured = trials(2, 20)
    measured[:, 3] = np.nan
    measured[:, 4] = 5
    found = group_summary({"one": score(predicted, measured)})
    some = [0, 1, 2, 5, 6]
    assert found["r2_median"] == pytest.approx(np.median(r2(predicted, measured)[some]))
    assert np.isnan(found["normalised_mean"])
    assert np.isnan(found["ceiling_median"])
    with pytest.raises(BrainfastError, match="at least one subject"):
        group_summary({})


@pytest.mark.parametrize("batch", [1, 9, 300])
def test_accumulator_equals_each_vertex_alone(batch):
    random = np.random.default_rng(5)
    predicted, measured = trials(3, 300)
    index = random.integers(0, 2, 300)
    present = random.random((300, V)) < 0.7
    present[index == 0, 2] = False
    present[np.flatnonzero(index == 0)[1:], 3] = False  # one trial only
    measured[:, 4] = 2
    predicted[:, 5] = 1
    measured[~present] = np.nan
    predicted[~present] = np.inf
    sums = GroupAccumulator(SUBJECTS)
    for start in range(0, 300, batch):
        rows = slice(start, start + batch)
        sums.update(index[rows], predicted[rows], measured[rows], present[rows])
    every = []
    for number, name in enumerate(SUBJECTS):
        for vertex in range(V):
            rows = (index == number) & present[:, vertex]
            pair = predicted[rows, vertex][:, None], measured[rows, vertex][:, None]
            scored = rows.sum() > 1
            expected = (r2(*pair)[0], pearson(*pair)[0]) if scored else (np.nan, np.nan)
            found = sums.r2(name)[vertex], sums.pearson(name)[vertex]
            assert np.allclose(found, expected, rtol=1e-9, equal_nan=True)
            every.append(expected[0])
    assert np.isnan(every).sum() == 4
    assert sums.median_r2() == pytest.approx(np.nanmedian(every))


def test_accumulator_refuses():
    predicted, measured = trials(0, 4)
    index, present = np.array([0, 1, 0, 0]), np.ones((4, V), bool)
    sums = GroupAccumulator(SUBJECTS)
    assert np.isnan(sums.median_r2())
    with pytest.raises(BrainfastError, match="one that was scored"):
        sums.r2("one")
    with pytest.raises(BrainfastError, match="three arrays"):
        sums.update(index, predicted, measured, present[:, :3])
    with pytest.raises(BrainfastError, match="subject_index"):
        sums.update(index[:3], predicted, measured, present)
    with pytest.raises(BrainfastError, match="predicted: expected finite"):
        sums.update(index, predicted * np.nan, measured, present)
    with pytest.raises(BrainfastError, match="measured: expected finite"):
        sums.update(index, predicted, measured * np.inf, present)
    with pytest.raises(BrainfastError, match="subjects one, two"):
        sums.update(index + 1, predicted, measured, present)
    sums.update(index, predicted, measured, present)
    with pytest.raises(BrainfastError, match="7 vertices, as before, got 3"):
        sums.update(index, predicted[:, :3], measured[:, :3], present[:, :3])
