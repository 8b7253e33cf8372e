"""What is measured, as data: the benchmark runs it at full size, the tests at tiny sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

StageName = Literal[
    "readout", "tokens", "training", "image", "projection", "embed", "blobgpt", "phase1", "topk"
]

TITLES: dict[StageName, str] = {
    "readout": "aligned tokens → response (`factor_readout`)",
    "tokens": "raw trunk tokens → response (down-sample, align, readout)",
    "training": "training step (forward, backward, AdamW)",
    "image": "uint8 image → response (preprocessing, trunk, head)",
    "projection": "BlobGPT: raw trunk tokens → latent (`factor_projection`)",
    "embed": "BlobGPT: latent → response (`vertex_embed`)",
    "blobgpt": "BlobGPT: raw trunk tokens → response, one projection for all subjects",
    "phase1": "BlobGPT: training step of the head (forward, backward, AdamW)",
    "topk": "candidates and objectives → the best ten of each (`score_topk`; B counts objectives)",
}

# The sizes that a stage has.
LETTERS: dict[StageName, str] = {
    "readout": "VLDHW",
    "tokens": "VLDHWC",
    "training": "VLDHW",
    "image": "VLDHWC",
    "projection": "LTCK",
    "embed": "VK",
    "blobgpt": "VLTCKRS",
    "phase1": "VLTCKRS",
    "topk": "NF",
}


@dataclass(frozen=True)
class Case:
    """One set of sizes.

    batches: values of B; listing1: those at which Listing 1 takes part, where its memory allows;
    compiled: those at which the forms that torch compiles do; C and raw:
    channels and side of the trunk's token grid; side: of the readout's grid; K, R, S: latent,
    embedding dimensions and subjects of BlobGPT, whose T tokens are the raw grid and one summary;
    N, F: candidates of a pool and their features.
    """

    stage: StageName
    batches: tuple[int, ...]
    V: int = 37_984
    L: int = 12
    D: int = 128
    C: int = 768
    K: int = 1024
    R: int = 2048
    S: int = 1
    N: int = 100_000
    F: int = 1024
    raw: int = 16
    side: int = 8
    trunk: str = ""
    image_px: int = 425
    listing1: tuple[int, ...] = ()
    compiled: tuple[int, ...] = ()

    @property
    def T(self) -> int:
        """Tokens of a layer, the summary among them."""
        return self.raw**2 + 1

    @property
    def H(self) -> int:
        """Height of the readout's grid."""
        return self.side

    @property
    def W(self) -> int:
        """Width of the readout's grid."""
        return self.side

    @property
    def memory(self) -> int:
        """Bytes that the case takes without Listing 1, an estimate from above."""
        letters, batch = LETTERS[self.stage], max(self.batches)
        if self.stage == "topk":
            return 10 * self.N * self.F + 8 * batch * self.N
        if "D" in letters:
            return 80 * self.V * self.D + 40 * batch * self.L * self.C * self.raw**2
        embedding = 24 * self.V * self.R if "R" in letters else 0
        maps = 16 * self.S * self.V * self.K if "V" in letters else 0
        tokens = batch * self.L * self.T * (self.C + self.K) if "T" in letters else 0
        return maps + embedding + 60 * tokens

    @property
    def sizes(self) -> dict[str, int]:
        """Those of the stage, by their letters."""
        return {letter: getattr(self, letter) for letter in LETTERS[self.stage]}

    @property
    def name(self) -> str:
        """Stage and sizes, e.g. readout-V37984-L12-D128-H8-W8."""
        return "-".join([self.stage, *(f"{letter}{size}" for letter, size in self.sizes.items())])

    def as_json(self) -> dict[str, Any]:
        """Name, stage, trunk, batches, and the sizes by their letters."""
        about = {"name": self.name, "stage": self.stage, "trunk": self.trunk}
        return {**about, "batches": list(self.batches), **self.sizes}


def _blobgpt(stage: StageName, batches: tuple[int, ...], **more: Any) -> Case:
    """The sizes of the report: the union of eight subjects' vertices, six layers of a ViT-B."""
    return Case(stage, batches, **{"V": 39_548, "L": 6, **more})


# V: one hemisphere pair's visual cortex in a quarter and in full, and the whole cortex.
WHOLE: tuple[Case, ...] = (
    Case("readout", (1, 8, 32), listing1=(1, 8, 32), compiled=(1,)),
    Case("readout", (1, 8), V=9_496, listing1=(1, 8)),
    Case("readout", (1, 8), V=327_684, listing1=(1, 8)),
    Case("readout", (8,), L=40, listing1=(8,)),
    Case("readout", (8,), D=512, listing1=(8,)),
    Case("tokens", (1, 8, 32)),
    Case("training", (8,), listing1=(8,)),
    Case("image", (1, 8), trunk="vit_base_patch16_224", listing1=(1,), compiled=(1, 8)),
    _blobgpt("projection", (1, 8, 32), compiled=(8,)),
    _blobgpt("embed", (1, 8, 32)),
    _blobgpt("blobgpt", (1, 8, 32), compiled=(1,)),
    _blobgpt("blobgpt", (1, 8), S=8),
    _blobgpt("phase1", (32,), S=8, compiled=(32,)),
    Case("topk", (1, 24)),
    Case("topk", (1, 24), N=10_000, F=12 * 128 * 65),
)

QUICK: tuple[Case, ...] = (
    Case("readout", (1, 8), listing1=(1,)),
    Case("tokens", (1,)),
    Case("training", (8,), V=9_496),
    Case("image", (1,), trunk="vit_base_patch16_224"),
    _blobgpt("projection", (1,)),
    _blobgpt("embed", (1,)),
    _blobgpt("blobgpt", (1,)),
    _blobgpt("phase1", (8,), V=9_887, R=512, S=2),
    Case("topk", (24,)),
)

# On a GPU: Listing 1 at B = 256 would need 300 GB.
GPU: tuple[Case, ...] = (
    Case("readout", (1, 8, 32, 256), listing1=(1, 8, 32, 256), compiled=(1, 8)),
    Case("training", (8,), listing1=(8,)),
    Case("image", (1,), trunk="vit_base_patch16_clip_224"),
    Case("tokens", (1, 8, 32, 256)),
    _blobgpt("blobgpt", (1, 8, 32, 256), compiled=(1, 32)),
    _blobgpt("projection", (1, 8, 32, 256)),
    _blobgpt("embed", (1, 8, 32, 256)),
    _blobgpt("image", (1,), trunk="eva02_base_patch14_224"),
    Case("topk", (1, 24)),
)


def tiny(case: Case) -> Case:
    """The same case at sizes that a test can afford, odd where the kernels' tails are."""
    batches = (1, 3) if len(case.batches) > 1 else (3,)
    if case.stage == "phase1":
        batches = (16,)  # BatchNorm of few images blows errors up
    some = batches if case.listing1 else ()
    return replace(
        case,
        batches=batches,
        V=211,
        L=2,
        D=20,
        C=192 if case.trunk else 24,
        K=37,
        R=23,
        S=min(case.S, 3),
        N=211,
        F=37,
        raw=2 if case.trunk else 6,
        side=2 if case.trunk else 4,
        trunk="vit_tiny_patch16_224" if case.trunk else "",
        image_px=40,
        listing1=some,
        compiled=(),
    )


def chosen(cases: Sequence[Case], only: Sequence[str]) -> tuple[Case, ...]:
    """The cases of the stages named; all of them where none is."""
    unknown = sorted(set(only) - set(TITLES))
    if unknown:
        raise SystemExit(f"--only: expected some of {', '.join(TITLES)}, got {', '.join(unknown)}")
    return tuple(case for case in cases if not only or case.stage in only)
