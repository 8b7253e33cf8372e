"""What is known of a simulated group: latents, what is shared, and what is a subject's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..files import load_tensors, read_json, save_tensors, write_json
from ..vertex_space import VertexSpace

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]

PLANTED = "planted_group"


@dataclass(frozen=True, eq=False)
class PlantedGroup:
    """response_s = embed (shared + own_s) latent, without noise; what the simulator knows.

    subjects: S names;  space: the V vertices of the whole group;  columns: subject -> its vertices
        there, int64 [V_s]
    image_ids: str [N], "nsd-00013";  latent: float32 [N,K] of every image
    embed: float32 [V,R], smooth over the cortex;  shared: float32 [R,K];  own: float32 [S,R,K]
    noise: float32 [S,V], standard deviation of what was added
    text_map: float32 [text_dim,K]; an image's text vector is text_map latent, plus noise
    """

    subjects: tuple[str, ...]
    space: VertexSpace
    columns: Mapping[str, Indices]
    image_ids: tuple[str, ...]
    latent: Floats
    embed: Floats
    shared: Floats
    own: Floats
    noise: Floats
    text_map: Floats

    def signal(
        self,
        subject: str | None,
        image_ids: Sequence[str] | npt.NDArray[Any] | None = None,
    ) -> Floats:
        """Responses without noise, float32 [n,V_s], to some images or all of them.

        subject: None gives the shared part alone, in all of the group's vertices, [n,V]
        """
        latent = self.latent[self.rows(self.image_ids if image_ids is None else image_ids)]
        if subject is None:
            return np.asarray(latent @ self.shared.T @ self.embed.T)
        if subject not in self.columns:
            raise BrainfastError(
                "subject", expected=f"one of {', '.join(self.subjects)}", got=repr(subject)
            )
        weight = self.shared + self.own[self.subjects.index(subject)]
        return np.asarray(latent @ weight.T @ self.embed[self.columns[subject]].T)

    def rows(self, image_ids: Sequence[str] | npt.NDArray[Any]) -> list[int]:
        """Rows of `latent` of some images."""
        rows = {image: row for row, image in enumerate(self.image_ids)}
        try:
            return [rows[str(image)] for image in image_ids]
        except KeyError as error:
            raise BrainfastError(
                "image_ids", expected="images of this group, nsd-00000", got=str(error)
            ) from error

    def save(self, folder: str | Path) -> None:
        """Write `planted_group.safetensors` and `planted_group.json`."""
        spaces, about = self.space.to_arrays()
        tensors = {f"space.{name}": array for name, array in spaces.items()}
        tensors |= {f"columns.{subject}": array for subject, array in self.columns.items()}
        tensors |= {name: getattr(self, name) for name in _ARRAYS}
        save_tensors(Path(folder) / f"{PLANTED}.safetensors", tensors)
        names = {"subjects": list(self.subjects), "image_ids": list(self.image_ids)}
        write_json(Path(folder) / f"{PLANTED}.json", {"space": about, "complete": True, **names})

    @staticmethod
    def load(folder: str | Path) -> PlantedGroup:
        """Read what `save` wrote."""
        about = read_json(Path(folder) / f"{PLANTED}.json")
        tensors = load_tensors(Path(folder) / f"{PLANTED}.safetensors")
        try:
            subjects = tuple(str(subject) for subject in about["subjects"])
            return PlantedGroup(
                subjects=subjects,
                space=VertexSpace.from_arrays(
                    {name: tensors[f"space.{name}"] for name in ("lh", "rh", "rois")},
                    about["space"],
                ),
                columns={subject: tensors[f"columns.{subject}"] for subject in subjects},
                image_ids=tuple(str(image) for image in about["image_ids"]),
                **{name: tensors[name] for name in _ARRAYS},
            )
        except (KeyError, TypeError) as error:
            raise BrainfastError(
                str(folder), expected="a simulated group's planted values", got=f"no {error}"
            ) from error


_ARRAYS = ("latent", "embed", "shared", "own", "noise", "text_map")
