"""Golden responses: a few images and the answers that a model gave when it was saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BrainfastError
from .files import load_tensors, save_tensors
from .heads import FoldedHead
from .images import preprocess
from .runtimes import TrunkRuntime
from .tokens import Tokens

if TYPE_CHECKING:
    from .preprocessing import Preprocessing

GOLDEN_FILE = "golden.safetensors"

# Largest error in standard deviations of the golden responses, of a head and of a trunk in a
# precision; the larger of the two counts. fp32 trunks differ between machines, whose matrix
# libraries sum in another order.
HEAD_TOLERANCE = {"fp32": 1e-3, "bf16x3": 1e-3, "bf16": 5e-2}
TRUNK_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}


@dataclass(frozen=True)
class Golden:
    """images uint8 [n,H,W,3] at the trunk's size, vertices int64 [m], response float32 [n,m]."""

    images: NDArray[np.uint8]
    vertices: NDArray[np.int64]
    response: NDArray[np.float32]
    name: str = GOLDEN_FILE

    def __post_init__(self) -> None:
        shapes = (self.images.shape, self.vertices.shape, self.response.shape)
        dtypes = tuple(str(a.dtype) for a in (self.images, self.vertices, self.response))
        fits = (
            self.images.ndim == 4
            and self.images.shape[3] == 3
            and self.response.size > 0
            and self.vertices.ndim == 1
            and self.response.shape == (len(self.images), len(self.vertices))
            and dtypes == ("uint8", "int64", "float32")
        )
        if not fits:
            raise BrainfastError(
                self.name,
                expected="images uint8 [n,H,W,3], vertices int64 [m], response float32 [n,m]",
                got=", ".join(f"{d} {list(s)}" for d, s in zip(dtypes, shapes, strict=True)),
                remedy="save the encoder again",
            )

    def save(self, folder: Path) -> None:
        """Write `golden.safetensors` into `folder`."""
        save_tensors(folder / GOLDEN_FILE, {"images": self.images} | self._answers(""))

    @staticmethod
    def save_subjects(folder: Path, goldens: Mapping[str, Golden]) -> None:
        """Write `golden.safetensors` of several subjects, who all saw the same images."""
        tensors: dict[str, NDArray[Any]] = {}
        for subject, golden in goldens.items():
            tensors |= {"images": golden.images} | golden._answers(f"{subject}.")
        save_tensors(folder / GOLDEN_FILE, tensors)

    @classmethod
    def load(cls, folder: Path, subject: str | None = None) -> Golden:
        """Read `golden.safetensors` of a model folder; of one subject, where it has several."""
        return cls._read(folder, [subject])[0]

    @classmethod
    def load_subjects(cls, folder: Path, subjects: Sequence[str]) -> dict[str, Golden]:
        """Read what `save_subjects` wrote, of some subjects; their images are one array."""
        return dict(zip(subjects, cls._read(folder, subjects), strict=True))

    @classmethod
    def _read(cls, folder: Path, subjects: Sequence[str | None]) -> list[Golden]:
        path = folder / GOLDEN_FILE
        tensors = load_tensors(path)
        found = []
        try:
            for subject in subjects:
                prefix = "" if subject is None else f"{subject}."
                vertices, response = (tensors[prefix + name] for name in ("vertices", "response"))
                found.append(cls(tensors["images"], vertices, response, name=str(path)))
        except KeyError as error:
            raise BrainfastError(
                str(path), expected="images, vertices and response", got=f"no {error}"
            ) from error
        return found

    def _answers(self, prefix: str) -> dict[str, NDArray[Any]]:
        return {f"{prefix}vertices": self.vertices, f"{prefix}response": self.response}

    def check(self, runtime: TrunkRuntime, head: FoldedHead, preprocessing: Preprocessing) -> float:
        """Run the images again; gives the largest error in standard deviations of the responses.

        An error beyond the tolerance is a BrainfastError: this machine would give other numbers
        than the one that saved the model.
        """
        small = head.take(self.vertices)
        aligned = small.align(self.tokens(runtime, preprocessing))
        return self.compare(small.readout(aligned), head, runtime)

    @staticmethod
    def check_subjects(
        goldens: Mapping[str, Golden],
        runtime: TrunkRuntime,
        heads: Mapping[str, FoldedHead],
        preprocessing: Preprocessing,
    ) -> dict[str, float]:
        """`check` for every head, from one pass of the trunk and of the projection they share.

        goldens: of the heads' subjects at least, all on the same images.
        """
        first = next(iter(heads))
        aligned = heads[first].align(goldens[first].tokens(runtime, preprocessing))
        errors = {}
        for subject, head in heads.items():
            golden = goldens[subject]
            found = head.take(golden.vertices).readout(aligned)
            errors[subject] = golden.compare(found, head, runtime)
        return errors

    def tokens(self, runtime: TrunkRuntime, preprocessing: Preprocessing) -> Tokens:
        """What a trunk makes of the images."""
        return runtime(preprocess(list(self.images), preprocessing))

    def compare(
        self,
        found: NDArray[np.float32],  # [n,m]
        head: FoldedHead,
        runtime: TrunkRuntime,
    ) -> float:
        """The largest error of answers from elsewhere, held to the tolerance as in `check`."""
        spread = max(float(self.response.std()), 1e-12)
        error = float(np.abs(found - self.response).max()) / spread
        tolerance = max(HEAD_TOLERANCE[head.precision], TRUNK_TOLERANCE[runtime.precision])
        if not error <= tolerance:
            raise BrainfastError(
                self.name,
                expected=f"golden responses within {tolerance:g} standard deviations",
                got=f"{error:.3g}",
                remedy="the trunk's weights, the preprocessing or a library has changed",
            )
        return error
