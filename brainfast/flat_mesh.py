"""The flattened fsaverage5 cortex as pictures: where vertices fall, and values between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.tri import Triangulation
from scipy.spatial import cKDTree

from .errors import BrainfastError
from .surfaces import mesh, mesh_data
from .vertex_space import HEMISPHERES, MESH_VERTICES, Hemisphere, VertexSpace

Floats: TypeAlias = npt.NDArray[np.float64]
Box: TypeAlias = tuple[float, float, float, float]  # x from, x to, y from, y to, mm of flat cortex

N = MESH_VERTICES["fsaverage5"]
LONGEST_EDGE = 15.0  # mm; the mesh's edges are 3, longer ones bridge the cuts
RING = 6  # neighbours of a vertex
SPARSE = 5.0  # mm to the sixth neighbour; 3 where every vertex of the mesh is there
MARGIN = 12.0  # mm of cortex shown around the data


@dataclass(frozen=True, eq=False)
class FlatMesh:
    """One hemisphere's flat mesh: the left's occipital pole points right, the right's left."""

    points: Floats  # [N,2] mm, anterior to posterior along x, ventral to dorsal along y
    triangles: npt.NDArray[np.int64]  # [F,3]
    drawn: npt.NDArray[np.bool_]  # [N], vertices that a triangle holds: not on a cut, not medial
    sulc: Floats  # [N], positive in sulci


@lru_cache(maxsize=2)
def flat_mesh(side: Hemisphere) -> FlatMesh:
    """The flat mesh of one hemisphere, without the triangles that bridge a cut."""
    flat = mesh("fsaverage5", "flat", side)
    points = flat.coordinates[:, :2].astype(np.float64)
    corners = points[flat.faces]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    triangles = flat.faces[edges.max(axis=1) < LONGEST_EDGE]
    drawn = np.zeros(N, dtype=bool)
    drawn[triangles] = True
    sulc = mesh_data("fsaverage5", "sulc", side).astype(np.float64)
    return FlatMesh(points, triangles, drawn, sulc)


def on_mesh(
    values: npt.NDArray[np.generic],  # [V] or [V,K]
    space: VertexSpace,
) -> dict[Hemisphere, Floats]:
    """`values` on the whole fsaverage5 meshes, lh and rh [N] or [N,K], NaN where there are none.

    Of a space on fsaverage the vertices that fsaverage5 shares, the first 10,242, are kept. Where
    the vertices are a sparse sample of the mesh, each also stands for its surroundings.
    """
    full: dict[Hemisphere, Floats] = {}
    columns = {"lh": space.lh_slice, "rh": space.rh_slice}
    for side in HEMISPHERES:
        vertices = getattr(space, side)
        kept = vertices[vertices < N]
        own = values[columns[side]][: kept.size]  # vertices increase: those kept come first
        full[side] = np.full((N, *values.shape[1:]), np.nan)
        near, nearest = _surroundings(side, kept)
        full[side][near] = own[nearest]
        full[side][kept] = own
    return full


def _surroundings(
    side: Hemisphere, vertices: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mesh vertices beside a sparse sample, and the place in `vertices` of the nearest one."""
    nothing = np.zeros(0, dtype=np.int64)
    if vertices.size <= RING:
        return nothing, nothing
    flat = flat_mesh(side)
    tree = cKDTree(flat.points[vertices])
    reach = float(np.median(tree.query(flat.points[vertices], RING + 1)[0][:, -1]))
    if reach < SPARSE:
        return nothing, nothing
    distance, nearest = tree.query(flat.points, distance_upper_bound=reach)
    near = np.flatnonzero(np.isfinite(distance))
    return near, nearest[near]


def check_drawable(space: VertexSpace) -> None:
    """Refuse a space that has no vertex on the flat fsaverage5 mesh."""
    if space.name not in MESH_VERTICES:
        raise BrainfastError(
            "map",
            expected="vertices of fsaverage or fsaverage5",
            got=f"a {space.name} space, which has no mesh to draw on",
            remedy="resample to fsaverage5, or give the mesh's vertex indices with the data",
        )
    if not any((vertices < N).any() for vertices in (space.lh, space.rh)):
        raise BrainfastError(
            "map",
            expected=f"vertices that fsaverage5 shares (indices below {N})",
            got=f"{space.V} vertices, none of them below {N}",
            remedy="draw the whole space, or a region with more vertices",
        )


def data_boxes(space: VertexSpace) -> dict[Hemisphere, Box]:
    """The part of each hemisphere to show, mirror images of each other, in one scale.

    A hemisphere without a vertex is left out.
    """
    spans: dict[Hemisphere, Floats] = {}
    for side in HEMISPHERES:
        vertices = getattr(space, side)
        vertices = vertices[vertices < N]
        flat = flat_mesh(side)
        points = flat.points[vertices[flat.drawn[vertices]]]
        if len(points):
            mirror = np.array([1.0 if side == "lh" else -1.0, 1.0])
            spans[side] = np.stack([(points * mirror).min(0), (points * mirror).max(0)])
    if not spans:
        raise BrainfastError(
            "map",
            expected="vertices on the flat mesh",
            got="vertices of the medial wall and the cuts alone",
        )
    x0, y0 = (np.min([span[0] for span in spans.values()], axis=0) - MARGIN).tolist()
    x1, y1 = (np.max([span[1] for span in spans.values()], axis=0) + MARGIN).tolist()
    boxes: dict[Hemisphere, Box] = {"lh": (x0, x1, y0, y1), "rh": (-x1, -x0, y0, y1)}
    return {side: boxes[side] for side in spans}


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels of a flat map [H,W] from the bottom up, each inside a triangle or outside the cortex.

    A pixel's value is the barycentric mean of its triangle's corners, so vertices keep theirs.
    """

    box: Box
    inside: npt.NDArray[np.bool_]  # [H,W]
    corners: npt.NDArray[np.int64]  # [P,3], P pixels inside
    weights: npt.NDArray[np.float32]  # [P,3]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        H, W = self.inside.shape
        return H, W

    def centres(self) -> tuple[Floats, Floats]:
        """Where the columns [W] and the rows [H] of pixels lie, mm."""
        H, W = self.shape
        x0, x1, y0, y1 = self.box
        x = x0 + (np.arange(W) + 0.5) * (x1 - x0) / W
        y = y0 + (np.arange(H) + 0.5) * (y1 - y0) / H
        return x, y

    def interpolate(self, values: Floats) -> npt.NDArray[np.float32]:  # [N] or [N,K]
        """Values at the pixels inside, float32 [P] or [P,K].

        Vertices that are NaN do not take part; NaN where they have more than half of a pixel.
        """
        flat = values.reshape(N, -1).astype(np.float32)
        known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(flat).all(axis=1))
        flat = np.where(known[:, None], flat, 0.0)
        total = np.zeros(len(self.corners), dtype=np.float32)
        mixed = np.zeros((len(self.corners), flat.shape[1]), dtype=np.float32)
        for corner, weight in zip(self.corners.T, self.weights.T, strict=True):
            share = weight * known[corner]
            total += share
            mixed += share[:, None] * flat[corner]
        mixed /= np.where(total > 0.5, total, np.nan)[:, None]
        return mixed.reshape(len(self.corners), *values.shape[1:])

    def picture(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:  # [P] or [P,K]
        """Pixels inside put in their places [H,W] or [H,W,K], NaN outside."""
        full = np.full((*self.shape, *pixels.shape[1:]), np.nan, dtype=np.float32)
        full[self.inside] = pixels
        return full


@lru_cache(maxsize=8)
def raster(side: Hemisphere, box: Box, pixels: int) -> Raster:
    """Pixels over `box`, `pixels` of them along its longer side."""
    x0, x1, y0, y1 = box
    step = max(x1 - x0, y1 - y0) / pixels
    x = np.arange(x0 + step / 2, x1, step)
    y = np.arange(y0 + step / 2, y1, step)
    grid_x, grid_y = np.meshgrid(x, y)
    flat = flat_mesh(side)
    finder = Triangulation(flat.points[:, 0], flat.points[:, 1], flat.triangles).get_trifinder()
    found = np.asarray(finder(grid_x, grid_y), dtype=np.int64)  # -1 outside
    inside: npt.NDArray[np.bool_] = found >= 0
    corners = flat.triangles[found[inside]]
    weights = _barycentric(flat.points[corners], np.stack([grid_x[inside], grid_y[inside]], axis=1))
    whole = (x0, x0 + step * x.size, y0, y0 + step * y.size)
    return Raster(whole, inside, corners, weights.astype(np.float32))


def rasters(boxes: Mapping[Hemisphere, Box], pixels: int) -> dict[Hemisphere, Raster]:
    """A raster for each box."""
    return {side: raster(side, box, pixels) for side, box in boxes.items()}


def _barycentric(
    corners: Floats,  # [P,3,2]
    points: Floats,  # [P,2]
) -> Floats:
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    whole = _cross(b - a, c - a)
    wa = _cross(b - points, c - points) / whole
    wb = _cross(c - points, a - points) / whole
    return np.stack([wa, wb, 1.0 - wa - wb], axis=1).clip(0.0, 1.0)


def _cross(u: Floats, v: Floats) -> Floats:
    return np.asarray(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
