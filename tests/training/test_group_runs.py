"""Runs of a group: trials without data, what a resumed run may not change, options of phase 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast.data import Arrays, Group
from brainfast.data.text import TextEmbeddings
from brainfast.errors import BrainfastError
from brainfast.training.group_recipes import Alignment

PHASE_2 = {"phase": 2, "unfreeze": ("attn",), "lr": 1e-3}
SHORT = {"steps": 2, "check_every": 1}


def rebuilt(group: Group, **changes: Callable[[Any], Any]) -> Group:
    """The same group, with other `images` and `responses` of every subject."""
    subjects = {}
    for name, data in group.data.items():
        whole = data.whole
        values = {"images": list(whole.images), "responses": np.array(whole.responses[:])}
        for what, change in changes.items():
            values[what] = change((name, data, values[what]))
        subjects[name] = Arrays(
            **values,
            coordinates=data.coordinates,
            space=data.space,
            image_ids=whole.image_ids,
            allow_nan=True,
        )
    return Group(subjects, fractions=(0.6, 0.2, 0.2), seed=1)


def rows_of(data: Any, side: str) -> np.ndarray:
    return np.flatnonzero(np.isin(data.whole.image_ids, getattr(data, side).image_ids))


def with_gaps(given: tuple[str, Any, np.ndarray]) -> np.ndarray:
    """A trial without data, a vertex that half of the trials lack, a subject without validation."""
    name, data, values = given
    rows = rows_of(data, "val")
    if name == "a":
        values[rows[0]] = np.nan
    elif name == "b":
        values[rows[::2], 3] = np.nan
    else:
        values[rows] = np.nan
    return values


def median_r2(encoder: Any, group: Group) -> float:
    """Over the measured trials of every vertex, one vertex at a time."""
    found = []
    for name in group.subjects:
        split = group.val.of(name)
        predicted = encoder.respond(list(split.images), name).values.astype(np.float64)
        for guess, truth in zip(predicted.T, split.responses[:].T.astype(np.float64), strict=True):
            known = ~np.isnan(truth)
            if known.sum() > 1:
                errors, spread = truth - guess, truth - truth[known].mean()
                found.append(1 - (errors[known] ** 2).sum() / (spread[known] ** 2).sum())
    return float(np.median(found))


def test_validation_is_over_the_trials_that_were_measured(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = rebuilt(make_group(), responses=with_gaps)
    encoder = fit_tiny(tmp_path, SHORT, group)
    best = max(row["r2"] for row in encoder.history)
    assert best == pytest.approx(median_r2(encoder, group), abs=1e-5)


def test_validation_without_a_measurement_is_an_error(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    def nowhere(given: tuple[str, Any, np.ndarray]) -> np.ndarray:
        given[2][rows_of(given[1], "val")] = np.nan
        return given[2]

    group = rebuilt(make_group(), responses=nowhere)
    with pytest.raises(BrainfastError, match="a finite R2, got none"):
        fit_tiny(tmp_path, SHORT, group)


@pytest.mark.parametrize("side", ["train", "val"])
@pytest.mark.parametrize("cached", [False, True])
def test_images_that_were_replaced_are_not_gone_on_with(
    fit_tiny: Callable[..., Any],
    make_group: Callable[..., Group],
    tmp_path: Path,
    side: str,
    cached: bool,
) -> None:
    def files(given: tuple[str, Any, list[Any]]) -> list[Path]:
        name, data, images = given
        paths = [tmp_path / name / f"{image_id}.png" for image_id in data.whole.image_ids]
        paths[0].parent.mkdir()
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        return paths

    group = rebuilt(make_group(), images=files)
    changes, work = {**SHORT, "cache_tokens": cached}, tmp_path / "work"
    first = fit_tiny(work, changes, group)
    assert fit_tiny(work, changes, group).card.model_hash == first.card.model_hash
    path = group.data["a"].whole.images[rows_of(group.data["a"], side)[0]]
    pixels = np.array(Image.open(path))
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(BrainfastError, match="images"):
        fit_tiny(work, changes, group)


@pytest.mark.parametrize("side", ["train", "val"])
def test_responses_that_were_replaced_are_not_gone_on_with(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path, side: str
) -> None:
    def halved(given: tuple[str, Any, np.ndarray]) -> np.ndarray:
        given[2][rows_of(given[1], side)] /= 2
        return given[2]

    group = make_group()
    fit_tiny(tmp_path, SHORT, group)
    with pytest.raises(BrainfastError, match=r"another .*responses"):
        fit_tiny(tmp_path, SHORT, rebuilt(group, responses=halved))


def test_phase_2_takes_the_head_options_of_its_recipe(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    start = fit_tiny(tmp_path / "1", SHORT, group)
    changes = {**SHORT, **PHASE_2, "head": {"dropout": 0.6}}
    tuned = fit_tiny(tmp_path / "2", changes, group, phase=2, start=start)
    assert (tuned.head.config.dropout, tuned.head.config.latent) == (0.6, 6)
    assert tuned.card.training.recipe["head"] == {"dropout": 0.6}
    given = fit_tiny(tmp_path / "3", changes, group, phase=2, start=start, dropout=0.1)
    assert given.head.config.dropout == 0.1
    for head, message in (
        ({"latent": 8}, "latent: expected 6, as of the model of phase 1, got 8; leave it out"),
        ({"components": 3}, "components: expected 4"),
        ({"subjects": ("a", "b")}, "subjects: expected"),
        ({"latnet": 6}, "latnet: expected an option of the model"),
    ):
        with pytest.raises(BrainfastError, match=message):
            fit_tiny(tmp_path / "4", {**changes, "head": head}, group, phase=2, start=start)


def test_the_texts_give_the_size_of_their_matrix(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    group = make_group()
    start = fit_tiny(tmp_path / "1", SHORT, group)
    ids = tuple(sorted(set(group.train.image_ids.tolist())))
    vectors = np.random.default_rng(0).normal(size=(len(ids), 10)).astype(np.float32)
    options = {"model": "llm-vem", "phase": 2, "start": start}
    options["text"] = TextEmbeddings(vectors, ids)
    changes = {**SHORT, **PHASE_2, "alignment": Alignment(), "head": {"text_dim": 9}}
    with pytest.raises(BrainfastError, match="text_dim: expected 10, as of the texts, got 9"):
        fit_tiny(tmp_path / "2", changes, group, **options)
