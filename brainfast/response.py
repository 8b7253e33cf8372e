"""The typed answer: predicted responses with the vertices that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import write_bytes
from .vertex_space import HEMISPHERES, MESH_VERTICES, VertexSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = npt.NDArray[np.float32]

STRUCTURES = {"lh": "CortexLeft", "rh": "CortexRight"}


@dataclass(frozen=True, eq=False)
class Response:
    """Responses of V vertices to B images, values float32 [B,V] in standard deviations (z).

    names: what the B images are called, where known
    """

    values: Floats
    space: VertexSpace
    units: str = "z"
    names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 2 or values.shape[1] != self.space.V or values.dtype.kind != "f":
            raise BrainfastError(
                "response",
                expected=f"floats [B,{self.space.V}]",
                got=f"{values.dtype} {list(values.shape)}",
            )
        names = tuple(self.names)
        if names and len(names) != len(values):
            raise BrainfastError(
                "names", expected=f"{len(values)}, one for each image", got=f"{len(names)}"
            )
        object.__setattr__(self, "values", values.astype(np.float32, copy=False))
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, images: int | slice | npt.NDArray[Any]) -> Response:
        """The response to some of the images; one index keeps the image axis."""
        rows = np.atleast_1d(np.arange(len(self))[images])
        names = [self.names[row] for row in rows] if self.names else ()
        return Response(self.values[rows], self.space, self.units, names)

    @property
    def lh(self) -> Floats:
        """Left hemisphere [B,V_lh]."""
        return self.values[:, self.space.lh_slice]

    @property
    def rh(self) -> Floats:
        """Right hemisphere [B,V_rh]."""
        return self.values[:, self.space.rh_slice]

    def roi(self, name: str) -> Floats:
        """One region's vertices [B,n], by any name that `VertexSpace.roi` knows."""
        return self.values[:, self.space.roi(name)]

    def to(self, mesh: Literal["fsaverage", "fsaverage5"]) -> dict[str, Floats]:
        """Whole meshes {"lh": [B,N], "rh": [B,N]}, NaN where nothing is predicted.

        fsaverage5's vertices are the first 10,242 of fsaverage's, so going down keeps those, and
        going up fills no others.
        """
        if mesh not in MESH_VERTICES:
            raise BrainfastError("mesh", expected=" or ".join(MESH_VERTICES), got=repr(mesh))
        if self.space.name == "custom":
            raise BrainfastError(
                "response", expected="vertices of fsaverage or fsaverage5", got="a custom space"
            )
        whole: dict[str, Floats] = {}
        for side in HEMISPHERES:
            vertices: npt.NDArray[np.int64] = getattr(self.space, side)
            inside = vertices < MESH_VERTICES[mesh]
            values = np.full((len(self), MESH_VERTICES[mesh]), np.nan, dtype=np.float32)
            values[:, vertices[inside]] = getattr(self, side)[:, inside]
            whole[side] = values
        return whole

    def save(self, prefix: str | Path) -> tuple[Path, Path]:
        """Write `<prefix>_hemi-L.func.gii` and `-R`: the space's whole mesh, an array an image.

        NaN where nothing is predicted. Each file is written atomically; returns both paths.
        """
        if not len(self):
            raise BrainfastError("response", expected="at least one image to save", got="none")
        name = self.space.name
        if name == "custom":
            raise BrainfastError(
                "response",
                expected="vertices of fsaverage or fsaverage5 to write GIFTI",
                got="a custom space",
                remedy="save .values with numpy instead",
            )
        whole = self.to(name)
        left, right = (Path(f"{prefix}_hemi-{letter}.func.gii") for letter in "LR")
        write_bytes(left, self._gifti("lh", whole["lh"]))
        write_bytes(right, self._gifti("rh", whole["rh"]))
        return left, right

    def _gifti(self, side: str, values: Floats) -> bytes:
        import nibabel  # writing needs it, answering does not

        gifti: Any = nibabel.gifti  # its classes carry no types

        image = gifti.GiftiImage(
            meta=gifti.GiftiMetaData(AnatomicalStructurePrimary=STRUCTURES[side])
        )
        for row, value in enumerate(values):
            label = self.names[row] if self.names else f"image {row}"
            meta = gifti.GiftiMetaData(Name=str(label), Units=self.units)
            image.add_gifti_data_array(
                gifti.GiftiDataArray(
                    value, intent="NIFTI_INTENT_NONE", datatype="float32", meta=meta
                )
            )
        return bytes(image.to_bytes())

    def plot(self, index: int = 0) -> Figure:
        """A flat map of the response to one image, as a matplotlib figure."""
        from .maps import value_map  # matplotlib and the meshes take seconds that serving has not

        one = self[index]
        title = one.names[0] if one.names else f"image {index}"
        return value_map(one.values[0], self.space, label=f"response to {title} ({self.units})")
