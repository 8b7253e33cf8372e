import logging

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.decomposition import IncrementalPCA

from brainfast.data import Arrays, Group
from brainfast.data.basis import OVERSAMPLES, Basis, basis_memory, fit_basis
from brainfast.errors import BrainfastError
from brainfast.vertex_space import VertexSpace

N, R = 400, 4
WHOLE = VertexSpace("fsaverage5", np.arange(0, 60, 2), np.arange(0, 30))
SPACES = {"one": WHOLE.take(np.arange(0, 50)), "two": WHOLE.take(np.arange(10, 60))}


def low_rank(seed, V=60):
    """n x V responses of four components of falling size, and a little noise."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).standard_normal((V, R)))[0]
    latent = random.standard_normal((N, R)) * [8, 5, 3, 2]
    mean = np.linspace(-1, 1, V)
    return (latent @ directions.T + 0.2 * random.standard_normal((N, V)) + mean).astype(np.float32)


def group(missing="mask", spaces=SPACES, holes=False):
    subjects = []
    for seed, (name, space) in enumerate(spaces.items()):
        values = low_rank(seed)[:, WHOLE.positions(space)]
        if holes:
            values[:, 12] = np.nan
            values[::3, 5] = np.nan
        subjects.append(
            Arrays(
                np.zeros((N, 2, 2, 3), np.uint8),
                values,
                space=space,
                subject=name,
                image_ids=[f"{name}-{row}" for row in range(N)],
                allow_nan=holes,
            )
        )
    return Group(subjects, fractions=(0.7, 0.2, 0.1), missing=missing)


def by_numpy(split):
    """The same by numpy alone: mean over what is present, imputed, then a plain SVD in float64."""
    rows = []
    for pair in range(len(split)):
        name = split.subjects[split.subject_index[pair]]
        row = np.full(split.V, 0.0 if split.missing == "zero" else np.nan)
        row[split.positions[name]] = split.of(name).responses[split.rows[pair]]
        rows.append(row)
    rows = np.stack(rows)
    rows[np.isnan(rows)] = 0 if split.missing == "zero" else np.nan
    mean = np.nanmean(rows, axis=0)
    centred = np.where(np.isnan(rows), 0, rows - mean)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    return directions[:R].T, mean, (singular**2 / (singular**2).sum())[:R]


def largest_angle(first, second):
    """Sine of the largest angle between two column spaces."""
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return np.sqrt(max(0.0, 1 - cosines.min() ** 2))


@pytest.mark.parametrize("missing", ["mask", "zero"])
@pytest.mark.parametrize("holes", [False, True])
def test_equals_a_plain_svd_of_the_training_part(missing, holes):
    found = group(missing, holes=holes)
    expected, mean, explained = by_numpy(found.train)
    basis = fit_basis(found.train, R, method="randomized")
    assert basis.weight.shape == (60, R)
    assert basis.weight.dtype == basis.bias.dtype == np.float32
    assert np.allclose(basis.bias, mean, atol=1e-5)
    cosine = np.abs((basis.weight * expected).sum(axis=0))
    assert (cosine > 1 - 1e-4).all()
    assert np.allclose(basis.explained, explained, rtol=1e-3)
    assert np.allclose(basis.weight.T @ basis.weight, np.eye(R), atol=1e-5)
    other, _, _ = by_numpy(found.val)  # the test can tell one part from another
    assert largest_angle(basis.weight, other) > 10 * largest_angle(basis.weight, expected)


@pytest.mark.parametrize("missing", ["mask", "zero"])
def test_incremental_agrees(missing):
    split = group(missing).train
    whole, some = (fit_basis(split, R, method=m) for m in ("randomized", "incremental"))
    assert (some.method, whole.method) == ("incremental", "randomized")
    assert len(split) > 2 * 256  # more than one step
    assert np.allclose(some.bias, whole.bias, atol=1e-6)
    assert ((some.weight * whole.weight).sum(axis=0) > 0.9999).all()  # signs too
    assert np.allclose(some.explained, whole.explained, rtol=0.01)


def test_incremental_with_pairs_left_over(monkeypatch):
    """As releases of scikit-learn do that refuse any block of fewer pairs than components."""
    sizes, fit = [], IncrementalPCA.partial_fit

    def strict(self, block, **options):
        assert len(block) >= self.n_components
        sizes.append(len(block))
        return fit(self, block, **options)

    monkeypatch.setattr("brainfast.data.basis.LEAST_ROWS", 8)
    monkeypatch.setattr(IncrementalPCA, "partial_fit", strict)
    split = group().train
    wide = R + 2 + OVERSAMPLES
    assert 0 < len(split) % wide < wide
    basis = fit_basis(split, R + 2, method="incremental")
    assert sum(sizes) == len(split)
    assert max(sizes) < 2 * wide
    assert largest_angle(basis.weight[:, :R], by_numpy(split)[0]) < 0.02


def test_seed_and_signs():
    split = group().train
    first, again = (fit_basis(split, R, seed=3) for _ in range(2))
    assert first.hash == again.hash
    assert (first.weight[np.abs(first.weight).argmax(axis=0), np.arange(R)] > 0).all()
    assert fit_basis(split, R - 1).hash != first.hash


def test_vertices_without_a_measurement_stay_out():
    """Vertex 12 of the only subject who has it is NaN throughout."""
    found = group(spaces={"one": SPACES["one"]}, holes=True)
    basis = fit_basis(found.train, R)
    assert basis.bias[12] == 0
    assert np.abs(basis.weight[12]).max() < 1e-6
    assert np.isfinite(basis.weight).all()


def test_method_follows_the_memory(caplog):
    split = group().train
    n, V = len(split), split.V
    need = basis_memory(n, V, R), basis_memory(n, V, R, "incremental")
    assert fit_basis(split, R, memory_limit=need[0]).method == "randomized"
    with pytest.raises(BrainfastError, match=r"at least .* GB, got a limit of") as caught:
        fit_basis(split, R, memory_limit=min(need) - 1)
    assert "fewer components" in str(caught.value)
    with caplog.at_level(logging.INFO, "brainfast.data.basis"):
        events = []
        fit_basis(split, R, progress=lambda done, total: events.append((done, total)))
    assert f"{n} x {V} responses" in caplog.messages[0]
    assert "GB of memory" in caplog.messages[0]
    assert events[-1] == (2 * n, 2 * n)
    assert [done for done, _ in events] == sorted(done for done, _ in events)


def test_memory_of_the_challenge():
    """Eight subjects: 15 GB at once, and well below it in steps."""
    n, V = 8 * 8000, 39548
    once, steps = (basis_memory(n, V, 2048, method) for method in ("randomized", "incremental"))
    assert n * V * 4 < once < 2 * n * V * 4
    assert steps < 0.7 * once


def test_estimate_is_told_before_the_work(capsys):
    split = group().train
    fit_basis(split, R, progress=True)
    told = capsys.readouterr().err
    assert told.index("GB of memory") < told.index("basis:")


def test_incremental_when_memory_is_short(monkeypatch):
    monkeypatch.setattr("brainfast.data.basis.LEAST_ROWS", 8)
    split = group().train
    limit = basis_memory(len(split), split.V, R, "incremental")
    assert limit < basis_memory(len(split), split.V, R)
    assert fit_basis(split, R, memory_limit=limit).method == "incremental"


@pytest.mark.parametrize("components", [0, -1, 61])
def test_more_components_than_vertices(components):
    split = group().train
    with pytest.raises(BrainfastError, match=r"1 to 60, the fewer of \d+ pairs and 60 vertices"):
        fit_basis(split, components)


def test_more_components_than_pairs():
    random = np.random.default_rng(0)
    few = Arrays(
        random.integers(0, 256, (9, 2, 2, 3), dtype=np.uint8),
        random.standard_normal((9, 60)),
        space=WHOLE,
        subject="a",
    )
    split = Group([few]).train
    n = len(split)
    assert n < 10
    with pytest.raises(BrainfastError, match=f"1 to {n}, the fewer of {n} pairs and 60 vertices"):
        fit_basis(split, n + 1)
    for method in ("randomized", "incremental"):
        basis = fit_basis(split, n, method=method)
        assert basis.weight.shape == (60, n)


def test_unknown_method():
    with pytest.raises(BrainfastError, match="randomized or incremental, got 'full'"):
        fit_basis(group().train, R, method="full")


def test_save_and_load(tmp_path):
    found = group()
    basis = fit_basis(found.train, R)
    path = tmp_path / "basis.safetensors"
    basis.save(path)
    loaded = Basis.load(path, found.space)
    assert loaded.hash == basis.hash
    assert loaded.space_hash == found.space.hash()
    assert loaded.split_hash == found.train.hash
    assert (loaded.missing, loaded.method) == ("mask", "randomized")
    assert (loaded.explained == basis.explained).all()
    other = WHOLE.take(np.arange(59))
    moved = VertexSpace("fsaverage5", WHOLE.lh + 1, WHOLE.rh)
    for space in (other, moved):
        with pytest.raises(BrainfastError, match=r"basis.safetensors: expected .* vertices"):
            Basis.load(path, space)


def write(path, metadata=None, **tensors):
    given = {"weight": np.ones((60, R), np.float32), "bias": np.zeros(60, np.float32)}
    save_file({k: v for k, v in (given | tensors).items() if v is not None}, path, metadata)
    return path


def test_public_file_is_accepted_where_its_size_matches(tmp_path):
    path = write(tmp_path / "pca.safetensors")
    basis = Basis.load(path, WHOLE)
    assert basis.space_hash is None
    assert basis.explained is None
    with pytest.raises(BrainfastError, match="got 60 vertices of an unknown"):
        Basis.load(path, SPACES["one"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bias": None}, "a basis: weight"),
        ({"other": np.ones(1, np.float32)}, "got bias, other, weight"),
        ({"bias": np.zeros(59, np.float32)}, r"\[60, 4\] and float32 \[59\]"),
        ({"weight": np.ones((60, R))}, "float64"),
        ({"weight": np.full((60, R), np.nan, np.float32)}, "finite"),
        ({"metadata": {"method": "magic"}}, "got 'magic'"),
    ],
)
def test_bad_files(tmp_path, tensors, message):
    path = write(tmp_path / "b.safetensors", **tensors)
    with pytest.raises(BrainfastError, match=message) as caught:
        Basis.load(path)
    assert "b.safetensors" in str(caught.value)
