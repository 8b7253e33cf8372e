"""A synthetic visual cortex on fsaverage5: regions as discs, early areas as wedges.

No atlas ships with the meshes, so every region here is made up around a published centre. The
names are those of the challenge; the borders are nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, identity
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from ..errors import BrainfastError
from ..surfaces import mesh
from ..vertex_space import HEMISPHERES, Hemisphere, VertexSpace

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Point: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Disc:
    """A region: centre in mm (x as distance from the midline), radius in mm along the cortex."""

    atlas: str
    centre: Point
    radius: float
    level: float  # place between V1 (0) and EBA (1)
    scale: float  # planted share of the global token
    sides: tuple[Hemisphere, ...] = HEMISPHERES


# Rounded group centres: Downing 2001 (EBA), Peelen & Downing 2005 (FBA), Weiner & Grill-Spector
# 2010 (FFA), Gauthier 2000 (OFA), Dilks 2013 (OPA), Epstein & Kanwisher 1998 (PPA), Vann 2009
# (RSC), Cohen 2000 (VWFA, left only), Brewer 2005 (hV4).
DISCS: dict[str, Disc] = {
    "hV4": Disc("prf-visualrois", (28, -78, -12), 11, 0.50, 0.35),
    "EBA": Disc("floc-bodies", (47, -72, 3), 17, 1.00, 0.75),
    "FBA-1": Disc("floc-bodies", (42, -46, -20), 10, 0.90, 0.85),
    "OFA": Disc("floc-faces", (39, -79, -9), 10, 0.70, 0.55),
    "FFA-1": Disc("floc-faces", (39, -61, -17), 10, 0.80, 0.75),
    "FFA-2": Disc("floc-faces", (41, -47, -20), 9, 0.90, 0.85),
    "OPA": Disc("floc-places", (34, -80, 22), 14, 0.66, 0.60),
    "PPA": Disc("floc-places", (27, -48, -10), 13, 0.80, 0.85),
    "RSC": Disc("floc-places", (17, -57, 13), 11, 0.80, 0.90),
    "VWFA-1": Disc("floc-words", (43, -57, -14), 8, 0.85, 0.75, ("lh",)),
}
STREAMS: dict[str, Disc] = {
    "midventral": Disc("streams", (29, -77, -13), 17, 0.50, 0.40),
    "midlateral": Disc("streams", (34, -88, 3), 21, 0.60, 0.50),
    "midparietal": Disc("streams", (26, -84, 24), 17, 0.50, 0.45),
    "ventral": Disc("streams", (36, -52, -17), 22, 0.85, 0.85),
    "lateral": Disc("streams", (47, -66, 6), 21, 0.95, 0.75),
    "parietal": Disc("streams", (24, -68, 46), 18, 0.75, 0.75),
}

FOVEA: Point = (12, -99, -5)  # occipital pole, where V1, V2 and V3 meet
CALCARINE: Point = (12, -66, 6)  # the sulcus farther forward: horizontal meridian of V1
CUNEUS: Point = (6, -88, 26)  # above it, to tell dorsal from ventral
EARLY_LENGTH = 46.0  # mm from the fovea to the largest eccentricity
EARLY_ANGLES = {"V1": 32.0, "V2": 62.0, "V3": 88.0}  # outer border, degrees from the calcarine
EARLY_LEVELS = {"V1": 0.0, "V2": 0.33, "V3": 0.33}
EARLY_SCALE = {"V1": 0.10, "V2": 0.15, "V3": 0.20}
LARGEST_ECCENTRICITY = 0.8  # of half the image: the sampling point stays inside it
FARTHEST_MERIDIAN = 80.0  # degrees above or below the horizontal at V3's outer border
HIGHER_REACH = 0.4  # how far from the centre higher areas look, of that eccentricity
SMOOTHING = 8  # rounds of averaging with the neighbours, about 3 mm each
GAP = 9.0  # mm; vertices between regions belong to the visual cortex and to no region
LEVEL_MARGIN = 0.05  # smoothing draws levels in; stretching by this much restores both ends


@dataclass(frozen=True)
class Cortex:
    """The synthetic visual cortex: its space and, for every vertex [V], what it is made of.

    level: place between V1 (0) and EBA (1);  scale: share of the global token
    position: x, y of the receptive field [V,2], half image widths, y downwards
    """

    space: VertexSpace
    level: Floats
    scale: Floats
    position: Floats


@cache
def visual_cortex() -> Cortex:
    """The whole synthetic visual cortex of fsaverage5, both hemispheres.

    Left hemisphere sees the right half of the image, dorsal cortex the lower half. Eccentricity
    grows forwards in V1 to V3, whose map is one smooth sheet and not the mirror images that real
    areas are; higher areas look near the centre. Level, scale and position are smoothed over the
    mesh, so that what is planted varies as smoothly as the model assumes.
    """
    left, right = (_hemisphere(side) for side in HEMISPHERES)
    names = [*left.masks, *(name for name in right.masks if name not in left.masks)]
    none_left, none_right = np.zeros(left.vertices.size, bool), np.zeros(right.vertices.size, bool)
    rois = {
        name: np.concatenate([left.masks.get(name, none_left), right.masks.get(name, none_right)])
        for name in names
    }
    space = VertexSpace("fsaverage5", left.vertices, right.vertices, rois, "simulated")
    level, scale, position = (
        np.concatenate([getattr(left, field), getattr(right, field)])
        for field in ("level", "scale", "position")
    )
    return Cortex(space, level, scale, position)


def thin(cortex: Cortex, vertices: int | None) -> Cortex:
    """`vertices` of the cortex's vertices, evenly spread over their order; all with None."""
    V = cortex.space.V
    if vertices is None:
        return cortex
    if not 2 <= vertices <= V:
        raise BrainfastError("vertices", expected=f"2 to {V}", got=str(vertices))
    kept = np.linspace(0, V - 1, vertices).round().astype(np.int64)
    return Cortex(
        cortex.space.take(kept), cortex.level[kept], cortex.scale[kept], cortex.position[kept]
    )


@dataclass(frozen=True)
class _Side:
    vertices: npt.NDArray[np.int64]  # [n]
    masks: dict[str, Mask]  # each [n]
    level: Floats  # [n]
    scale: Floats  # [n]
    position: Floats  # [n,2]


def _hemisphere(side: Hemisphere) -> _Side:
    white = mesh("fsaverage5", "white", side)
    points = white.coordinates.astype(np.float64)
    graph = edge_graph(points, white.faces)
    distance = {
        name: _distance(points, graph, disc.centre) / disc.radius
        for name, disc in (DISCS | STREAMS).items()
        if side in disc.sides
    }
    eccentricity, angle = _early_polar(side, points, graph)
    areas = {name: _ring(eccentricity, angle, name) for name in EARLY_ANGLES}
    early = np.any(list(areas.values()), axis=0)
    masks = _halves(areas, angle) | _nearest(distance, early) | {"early": early}
    labelled = np.any(list(masks.values()), axis=0)
    inside = _close(graph, labelled)
    planted = np.column_stack(
        [_properties(areas, distance), _position(side, eccentricity, angle, early)]
    )
    nearest = cKDTree(points[labelled]).query(points)[1]
    planted = smooth(graph, planted[labelled][nearest])[inside]
    return _Side(
        vertices=np.flatnonzero(inside),
        masks={name: mask[inside] for name, mask in masks.items()},
        level=np.clip((planted[:, 0] - LEVEL_MARGIN) / (1 - 2 * LEVEL_MARGIN), 0, 1),
        scale=planted[:, 1],
        position=planted[:, 2:],
    )


def edge_graph(
    points: Floats,  # [N,3]
    faces: npt.NDArray[np.int64],  # [F,3]
) -> csr_matrix:
    """Symmetric graph of a mesh's edges, weighted by their length in mm."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.unique(np.sort(ends, axis=1), axis=0)
    length = np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1)
    graph = csr_matrix((length, (ends[:, 0], ends[:, 1])), shape=(len(points),) * 2)
    return csr_matrix(graph + graph.T)


def smooth(graph: csr_matrix, values: Floats, steps: int = SMOOTHING) -> Floats:
    """`values` [N,...] averaged with their neighbours on the mesh, `steps` times."""
    mixing = (graph > 0).astype(np.float64) + identity(graph.shape[0], format="csr")
    mixing = csr_matrix(mixing.multiply(1 / mixing.sum(axis=1)))
    for _ in range(steps):
        values = mixing @ values
    return np.asarray(values)


def smooth_noise(
    space: VertexSpace,  # on fsaverage5
    random: np.random.Generator,
    columns: int,
    steps: int,
) -> Floats:
    """Normal noise averaged over neighbours on the mesh, unit variance, [V,columns]."""
    parts = []
    for side in HEMISPHERES:
        white = mesh("fsaverage5", "white", side)
        graph = edge_graph(white.coordinates.astype(np.float64), white.faces)
        noise = smooth(graph, random.standard_normal((len(white.coordinates), columns)), steps)
        parts.append(noise[getattr(space, side)])
    values = np.concatenate(parts)
    return np.asarray(values / values.std())


def _distance(points: Floats, graph: csr_matrix, centre: Point) -> Floats:
    """Millimetres along the mesh from the vertex that lies nearest to a centre."""
    return np.asarray(dijkstra(graph, indices=_seed(points, centre)))


def _seed(points: Floats, centre: Point) -> int:
    sign = np.sign(points[:, 0].mean())  # the left hemisphere lies at negative x
    return int(np.linalg.norm(points - np.array(centre) * [sign, 1, 1], axis=1).argmin())


def _early_polar(side: Hemisphere, points: Floats, graph: csr_matrix) -> tuple[Floats, Floats]:
    """Distance from the fovea over the early areas' length, and degrees above the calcarine.

    Directions are taken on the sphere, where they do not depend on the folds; dorsal is positive.
    """
    sphere = mesh("fsaverage5", "sphere", side).coordinates.astype(np.float64)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    fovea, front, dorsal = (sphere[_seed(points, at)] for at in (FOVEA, CALCARINE, CUNEUS))
    ahead = front - (front @ fovea) * fovea
    ahead /= np.linalg.norm(ahead)
    across = np.cross(fovea, ahead)
    across *= np.sign(dorsal @ across)
    angle = np.degrees(np.arctan2(sphere @ across, sphere @ ahead))
    return _distance(points, graph, FOVEA) / EARLY_LENGTH, angle


def _ring(eccentricity: Floats, angle: Floats, name: str) -> Mask:
    """One early area: between its own border and that of the area inside it."""
    order = list(EARLY_ANGLES)
    inner = EARLY_ANGLES[order[order.index(name) - 1]] if name != order[0] else -1.0
    off = np.abs(angle)
    return np.asarray((eccentricity <= 1) & (off > inner) & (off <= EARLY_ANGLES[name]))


def _close(graph: csr_matrix, mask: Mask) -> Mask:
    """The mask with its gaps filled: grown by `GAP` along the mesh and shrunk again, no holes."""

    def near(those: Mask) -> Mask:
        seeds = np.flatnonzero(those)
        return np.asarray(dijkstra(graph, indices=seeds, min_only=True, limit=GAP) <= GAP)

    closed = np.asarray(mask | ~near(~near(mask)))
    outside = np.flatnonzero(~closed)
    _, part = connected_components(graph[outside][:, outside], directed=False)
    closed[outside[part != np.bincount(part).argmax()]] = True
    return closed


def _halves(areas: dict[str, Mask], angle: Floats) -> dict[str, Mask]:
    """Ventral and dorsal half of every early area."""
    return {
        name + half: mask & ((angle > 0) == (half == "d"))
        for name, mask in areas.items()
        for half in "vd"
    }


def _nearest(distance: dict[str, Floats], early: Mask) -> dict[str, Mask]:
    """Discs outside the early areas; where two of one atlas overlap, the nearer centre has it."""
    masks = {}
    for name, disc in (DISCS | STREAMS).items():
        if name in distance:
            rivals = [
                distance[other]
                for other, that in (DISCS | STREAMS).items()
                if that.atlas == disc.atlas and other in distance
            ]
            masks[name] = ~early & (distance[name] <= 1) & (distance[name] <= np.min(rivals, 0))
    return masks


def _properties(areas: dict[str, Mask], distance: dict[str, Floats]) -> Floats:
    """Level and scale [N,2]: those of the early area, else of the nearest disc in its radii."""
    discs = [(DISCS | STREAMS)[name] for name in distance]
    of_disc = np.array([(disc.level, disc.scale) for disc in discs])
    planted: Floats = of_disc[np.argmin(list(distance.values()), axis=0)]
    for name, mask in areas.items():
        planted[mask] = EARLY_LEVELS[name], EARLY_SCALE[name]
    return planted


def _position(side: Hemisphere, eccentricity: Floats, angle: Floats, early: Mask) -> Floats:
    """Receptive field centres [N,2]: polar in the early areas, drawn to the centre beyond them."""
    reach = np.where(early, 1.0, HIGHER_REACH)
    radius = LARGEST_ECCENTRICITY * np.minimum(eccentricity, 1) * reach
    border = EARLY_ANGLES["V3"]
    meridian = np.interp(np.abs(angle), [0, border, 180], [0, FARTHEST_MERIDIAN, 0])
    polar = np.radians(np.sign(angle) * meridian)
    across = 1.0 if side == "lh" else -1.0
    return np.column_stack([across * radius * np.cos(polar), radius * np.sin(polar)])
