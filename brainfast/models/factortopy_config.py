"""The options of FactorTopy, checked; apart from the model, which runs without pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..card import Side


class FactorTopyConfig(BaseModel):
    """The options of FactorTopy; the defaults are the paper's.

    bottleneck: "shared" has one C_l -> D matrix a layer, "dual" one for local and one for global.
    topology, layer_selector, space_selector, scale_selector and samples are the ablations of
    Table 16: without topology the selectors are free parameters of every vertex, without a
    selector its axis is averaged. standardize: tokens are standardised a layer and channel first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(default=128, ge=1)
    grid: tuple[Side, Side] = (8, 8)
    bottleneck: Literal["shared", "dual"] = "shared"
    surface: Literal["inflated", "sphere"] = "inflated"
    topology: bool = True
    layer_selector: bool = True
    space_selector: bool = True
    scale_selector: bool = True
    samples: int = Field(default=1, ge=1)
    standardize: bool = False
