"""A made-up cortex and pool, to try a session without a model or an image."""

from __future__ import annotations

import numpy as np

from ..objective import Objective
from ..vertex_space import VertexSpace
from .candidates import ArrayCandidates, FoldedObjective
from .subject import SAMPLE, World, groups_of

REGIONS = ("V1v", "EBA", "FFA-1", "PPA")
CANDIDATES = 2000
CATEGORIES = 8
FEATURES = 96
EXPLAINED = 0.5  # of what could be explained: the variance of a prediction over the ceiling


def made_up_space(vertices: int = 600) -> VertexSpace:
    """As many vertices on no mesh, in four regions of one size over both hemispheres."""
    region = np.arange(vertices) * len(REGIONS) // vertices
    half = vertices // 2
    order = np.argsort(np.arange(vertices) % 2, kind="stable")  # every region in both hemispheres
    masks = {name: (region == index)[order] for index, name in enumerate(REGIONS)}
    return VertexSpace("custom", np.arange(vertices - half), np.arange(half), masks, "made up")


def made_up_features(candidates: int, seed: int = 0) -> np.ndarray:
    """Features float32 [N,96]: eight categories, and variation within them that falls off."""
    random = np.random.default_rng([seed, 0])
    strength = 1.0 / np.sqrt(1.0 + np.arange(FEATURES))
    centres = random.standard_normal((CATEGORIES, FEATURES))
    category = random.integers(0, CATEGORIES, candidates)
    within = random.standard_normal((candidates, FEATURES))
    features: np.ndarray = (0.6 * centres[category] + within) * strength
    return features.astype(np.float32)


def made_up_readout(
    space: VertexSpace,
    features: np.ndarray,  # [N,F]
    ceiling: np.ndarray,  # [V]
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """weight [V,F] and bias [V], float32: a region's preference, and each vertex's own.

    The prediction's variance over the pool (its first 2,000) is half of the ceiling, its mean 0.
    """
    random = np.random.default_rng([seed, 1])
    F = features.shape[1]
    weight = 0.7 * random.standard_normal((space.V, F))
    for mask in space.rois.values():
        weight[mask] += random.standard_normal(F)
    predicted = features[:SAMPLE] @ weight.T
    weight *= (np.sqrt(EXPLAINED * ceiling) / predicted.std(axis=0))[:, None]
    return weight.astype(np.float32), (-(features.mean(axis=0) @ weight.T)).astype(np.float32)


def made_up_ceiling(space: VertexSpace, seed: int = 0) -> np.ndarray:
    """Ceilings of single trials [V] between 0.1 and 0.5."""
    return np.random.default_rng([seed, 3]).uniform(0.1, 0.5, space.V)


def made_up_world(text: str, *, candidates: int = CANDIDATES, seed: int = 0) -> World:
    """All of it together, for an objective such as "FFA - PPA"."""
    space = made_up_space()
    features, ceiling = made_up_features(candidates, seed), made_up_ceiling(space, seed)
    weight, bias = made_up_readout(space, features, ceiling, seed)
    weights = Objective.of(text).weights(space)[0]
    objective = FoldedObjective(text, weights, weights @ weight, float(weights @ bias))
    digits = len(str(candidates - 1))
    ids = [f"made-up-{number:0{digits}d}" for number in range(candidates)]
    pool = ArrayCandidates(features, ids, model_hash="made up")

    def predict(rows: np.ndarray) -> np.ndarray:
        response: np.ndarray = features[rows] @ weight.T + bias
        return response

    return World(pool, objective, predict, groups_of(space), ceiling)
