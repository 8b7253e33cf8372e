import numpy as np
import pytest

from brainfast.analysis.group_scores import group_summary
from brainfast.analysis.scores import pearson, r2, score
from brainfast.errors import BrainfastError

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
