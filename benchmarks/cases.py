"""What is measured, as data: the benchmark runs it at full size, the tests at tiny sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

StageName = Literal["readout", "tokens", "training", "image"]

TITLES: dict[StageName, str] = {
    "readout": "aligned tokens → response (`factor_readout`)",
    "tokens": "raw trunk tokens → response (down-sample, align, readout)",
    "training": "training step (forward, backward, AdamW)",
    "image": "uint8 image → response (preprocessing, trunk, head)",
}


@dataclass(frozen=True)
class Case:
    """One set of sizes.

    batches: values of B; listing1: those at which Listing 1 takes part, where its memory allows;
    compile_listing1: those at which torch.compile of it does; C and raw: channels and side of the
    trunk's token grid; side: of the readout's grid.
    """

    stage: StageName
    batches: tuple[int, ...]
    V: int = 37_984
    L: int = 12
    D: int = 128
    C: int = 768
    raw: int = 16
    side: int = 8
    trunk: str = ""
    image_px: int = 425
    listing1: tuple[int, ...] = ()
    compile_listing1: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Stage and sizes, e.g. readout-V37984-L12-D128."""
        return f"{self.stage}-V{self.V}-L{self.L}-D{self.D}"

    def as_json(self) -> dict[str, Any]:
        """The sizes by their letters, and the name."""
        values = asdict(self)
        return {"name": self.name, "H": self.side, "W": self.side, **values}


# V: one hemisphere pair's visual cortex in a quarter and in full, and the whole cortex.
WHOLE: tuple[Case, ...] = (
    Case("readout", (1, 8, 32), listing1=(1, 8, 32), compile_listing1=(1, 8)),
    Case("readout", (1, 8), V=9_496, listing1=(1, 8)),
    Case("readout", (1, 8), V=327_684, listing1=(1, 8)),
    Case("readout", (8,), L=40, listing1=(8,)),
    Case("readout", (8,), D=512, listing1=(8,)),
    Case("tokens", (1, 8, 32)),
    Case("training", (8,), listing1=(8,)),
    Case("image", (1, 8), trunk="vit_base_patch16_224", listing1=(1,)),
)

QUICK: tuple[Case, ...] = (
    Case("readout", (1, 8), listing1=(1,)),
    Case("tokens", (1,)),
    Case("training", (8,), V=9_496),
    Case("image", (1,), trunk="vit_base_patch16_224"),
)


def tiny(case: Case) -> Case:
    """The same case at sizes that a test can afford, odd where the kernels' tails are."""
    batches = (1, 3) if len(case.batches) > 1 else (3,)
    some = batches if case.listing1 else ()
    return replace(
        case,
        batches=batches,
        V=211,
        L=2,
        D=20,
        C=192 if case.trunk else 24,
        raw=2 if case.trunk else 6,
        side=2 if case.trunk else 4,
        trunk="vit_tiny_patch16_224" if case.trunk else "",
        image_px=40,
        listing1=some,
        compile_listing1=(),
    )


def chosen(cases: Sequence[Case], only: Sequence[str]) -> tuple[Case, ...]:
    """The cases of the stages named; all of them where none is."""
    unknown = sorted(set(only) - set(TITLES))
    if unknown:
        raise SystemExit(f"--only: expected some of {', '.join(TITLES)}, got {', '.join(unknown)}")
    return tuple(case for case in cases if not only or case.stage in only)
