"""FactorTopy: a factorised, topologically smooth choice of space, layer and scale a vertex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import BrainfastError
from ..folded import FoldedFactorTopy
from ..ops import FactorReadoutWorkspace, factor_readout
from ..tokens import Tokens, downsample
from .parameters import as_float32, uniform

if TYPE_CHECKING:
    from .factortopy_config import FactorTopyConfig

FREQUENCIES = 32
ENCODING = 3 * FREQUENCIES * 2


class Selectors(NamedTuple):
    """What every vertex looks at; `samples` neighbouring rows a vertex."""

    space: torch.Tensor  # [V*samples,2] in -1..1, x to the right, y downwards
    layer: torch.Tensor  # [V*samples,L], rows sum to 1
    scale: torch.Tensor  # [V*samples], weight of the global token


def positional_encoding(coordinates: torch.Tensor) -> torch.Tensor:  # [V,3] -> [V,192]
    """sin and cos of pos * 1000^(-k/32), k = 0..31, pos = (coordinate - min) * 100 / extent.

    The extent is the largest of the three axes, so the encoding depends on the whole set of
    coordinates. Layout [axis][frequency][sin, cos]. A constant axis gives a constant encoding.
    """
    coordinates = coordinates.double()
    low = coordinates.amin(dim=0)
    extent = (coordinates.amax(dim=0) - low).max()
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    position = (coordinates - low) * (100.0 / extent)
    exponent = torch.arange(FREQUENCIES, dtype=torch.float64, device=coordinates.device)
    phase = position[:, :, None] * 1000.0 ** (-exponent / FREQUENCIES)
    encoding = torch.stack([phase.sin(), phase.cos()], dim=-1)
    return encoding.reshape(len(coordinates), ENCODING).float()


class Selector(nn.Module):
    """A smooth function of cortical position: 192 -> 128 GELU -> 128 GELU -> outputs.

    The last layer has no bias and starts at zero, so training starts at image centre, 1/L and 0.5.
    """

    def __init__(self, outputs: int, hidden: int = 128) -> None:
        super().__init__()
        last = nn.Linear(hidden, outputs, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Linear(ENCODING, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last
        )

    def forward(self, encoding: torch.Tensor) -> torch.Tensor:  # [V,192] -> [V,outputs]
        out: torch.Tensor = self.layers(encoding)
        return out


class FreeSelector(nn.Module):
    """One free parameter a vertex and output: the ablation without topology."""

    def __init__(self, vertices: int, outputs: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(vertices, outputs))

    def forward(self, encoding: torch.Tensor) -> torch.Tensor:  # [V,192] -> [V,outputs]
        return self.value


class FactorTopy(nn.Module):
    """v = sum_l layer_l ((1-scale) interp(local_l, space) + scale global_l);
    y = mean_D(v * weight) + bias.

    coordinates [V,3]: cortical positions, any unit; channels: C_l of every layer; layers: their
    numbers in the trunk. Source: Yang et al., Brain Decodes Deep Nets, eq. 1 and Listing 1.
    """

    coordinates: torch.Tensor
    encoding: torch.Tensor
    select_space: nn.Module
    select_layer: nn.Module
    select_scale: nn.Module

    def __init__(
        self,
        coordinates: torch.Tensor,  # [V,3]
        channels: Sequence[int],
        layers: Sequence[int],
        config: FactorTopyConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config or _papers_config()
        self.layers = tuple(layers)
        _check_construction(coordinates, channels, layers)
        self.register_buffer("coordinates", coordinates.float())
        self.register_buffer("encoding", positional_encoding(coordinates), persistent=False)
        self._make_selectors()
        dim, vertices = self.config.dim, len(coordinates)
        self.bottleneck_local = nn.ParameterList(uniform(dim, c, fan_in=c) for c in channels)
        if self.config.bottleneck == "dual":
            self.bottleneck_global = nn.ParameterList(uniform(dim, c, fan_in=c) for c in channels)
        for index, count in enumerate(channels):
            for scale in ("local", "global"):
                self.register_buffer(f"mean_{scale}_{index}", torch.zeros(count))
                self.register_buffer(f"std_{scale}_{index}", torch.ones(count))
        self.weight = uniform(vertices * self.config.samples, dim, fan_in=dim)
        self.bias = uniform(vertices * self.config.samples, fan_in=dim)
        self._head_precision: Literal["fp32", "bf16"] = "fp32"
        self._workspaces: list[FactorReadoutWorkspace] = []

    @property
    def V(self) -> int:
        """Number of vertices."""
        return len(self.coordinates)

    @property
    def selector_parameters(self) -> list[nn.Parameter]:
        """The parameters of the three selectors, which a recipe may train at another rate."""
        names = ("select_space", "select_layer", "select_scale")
        return [p for name, p in self.named_parameters() if name.startswith(names)]

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Raw tokens of B images -> response [B,V] in z units."""
        return self.respond(tokens, self.selectors())

    def respond(self, tokens: Tokens, selectors: Selectors) -> torch.Tensor:
        """`forward` with selectors that were evaluated already -> [B,V]."""
        local, global_ = self.align(tokens)
        weight: torch.Tensor = self.weight
        readout = self._workspace() if self._trains_on_cpu(local) else factor_readout
        if self._rounds(local):
            local, global_, weight = (x.bfloat16() for x in (local, global_, weight))
        response: torch.Tensor = readout(local, global_, *selectors, weight, self.bias)
        if self.config.samples == 1:
            return response
        return response.reshape(len(response), self.V, self.config.samples).mean(dim=2)

    def set_head_precision(self, precision: Literal["fp32", "bf16"]) -> None:
        """Operands of the readout in training; without gradients it is always float32."""
        self._head_precision = precision
        self._workspaces.clear()

    def align(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw tokens -> local [B,L,D,H,W] and global [B,L,D] in the shared channel space."""
        tokens = downsample(tokens, self.config.grid)
        if _better_at_once(tokens):
            return self._align_at_once(tokens)
        local, global_ = [], []
        for index in range(len(self.layers)):
            patch = self._standard(tokens.local[index].flatten(2), "local", index)
            if not self.config.space_selector:
                patch = patch.mean(dim=2, keepdim=True)
            summary = self._standard(tokens.global_[index][:, :, None], "global", index)
            local.append(self.bottleneck_local[index] @ patch)
            global_.append(self._global_bottleneck(index) @ summary)
        grid = self.config.grid if self.config.space_selector else (1, 1)
        stacked = torch.stack(local, 1)
        return stacked.reshape(*stacked.shape[:3], *grid), torch.stack(global_, 1).squeeze(3)

    def _align_at_once(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """`align` of layers that are alike, as one product for all of them."""
        numbers = range(len(self.layers))
        images, grid = tokens.B, self.config.grid if self.config.space_selector else (1, 1)
        patch = torch.stack([part.flatten(2) for part in tokens.local])  # [L,B,C,P]
        summary = torch.stack(tokens.global_)  # [L,B,C]
        if self.config.standardize:
            patch = self._standard_at_once(patch.transpose(2, 3), "local").transpose(2, 3)
            summary = self._standard_at_once(summary[:, :, None], "global").squeeze(2)
        if not self.config.space_selector:
            patch = patch.mean(dim=3, keepdim=True)
        matrix = torch.stack(list(self.bottleneck_local))  # [L,D,C]
        shared = self.config.bottleneck == "shared"
        local = matrix @ patch.transpose(1, 2).flatten(2)  # [L,D,B*P]
        if not shared:
            matrix = torch.stack([self._global_bottleneck(index) for index in numbers])
        global_ = matrix @ summary.transpose(1, 2)  # [L,D,B]
        local = local.reshape(*matrix.shape[:2], images, *grid)  # [L,D,B,H,W]
        return local.permute(2, 0, 1, 3, 4), global_.permute(2, 0, 1)

    def selectors(self) -> Selectors:
        """Evaluate the selectors of all vertices; an axis without a selector is averaged."""
        rows = self.V * self.config.samples
        ones = self.weight.new_ones
        space = ones(rows, 2) * 0.0
        layer = ones(rows, len(self.layers)) / len(self.layers)
        scale = ones(rows) * 0.5
        if self.config.space_selector:
            space = torch.tanh(self.select_space(self.encoding)).reshape(rows, 2)
        if self.config.layer_selector:
            chosen = torch.softmax(self.select_layer(self.encoding), dim=-1)
            layer = chosen.repeat_interleave(self.config.samples, dim=0)
        if self.config.scale_selector:
            chosen = torch.sigmoid(self.select_scale(self.encoding)).squeeze(1)
            scale = chosen.repeat_interleave(self.config.samples, dim=0)
        return Selectors(space, layer, scale)

    def set_moments(
        self,
        local: Sequence[tuple[torch.Tensor, torch.Tensor]],
        global_: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Store mean and standard deviation ([C_l], [C_l]) of every layer's training tokens."""
        for scale, moments in (("local", local), ("global", global_)):
            for index, (mean, std) in enumerate(moments):
                self.get_buffer(f"mean_{scale}_{index}").copy_(mean)
                # A channel that never varies carries nothing: leave it unscaled, not infinite.
                std = torch.as_tensor(std)
                self.get_buffer(f"std_{scale}_{index}").copy_(torch.where(std > 1e-6, std, 1.0))

    @torch.no_grad()
    def fold(self) -> FoldedFactorTopy:
        """Evaluate the selectors and multiply the standardisation into the bottlenecks."""
        selectors = self.selectors()
        samples = self.config.samples
        local = [self._fold_bottleneck("local", i) for i in range(len(self.layers))]
        global_ = [self._fold_bottleneck("global", i) for i in range(len(self.layers))]
        return FoldedFactorTopy(
            space=as_float32(selectors.space),
            layer=as_float32(selectors.layer),
            scale=as_float32(selectors.scale),
            weight=as_float32(self.weight / samples),
            bias=as_float32(self.bias / samples),
            bottleneck_local=tuple(matrix for matrix, _ in local),
            bottleneck_global=tuple(matrix for matrix, _ in global_),
            offset_local=np.stack([offset for _, offset in local]),
            offset_global=np.stack([offset for _, offset in global_]),
            layers=self.layers,
            grid=self.config.grid,
            samples=samples,
            pool_space=not self.config.space_selector,
        )

    def _trains_on_cpu(self, local: torch.Tensor) -> bool:
        floats = all(x.dtype == torch.float32 and x.is_cpu for x in (local, self.weight))
        return floats and self.training and torch.is_grad_enabled()

    def _rounds(self, local: torch.Tensor) -> bool:
        """Whether the readout takes bfloat16; on a CPU the workspace rounds by itself."""
        rounds = self._head_precision == "bf16" and self.training and torch.is_grad_enabled()
        return rounds and local.is_cuda

    def _workspace(self) -> FactorReadoutWorkspace:
        """One whose last call waits for no backward: several graphs may be alive at a time."""
        for workspace in self._workspaces:
            if not workspace.waiting:
                return workspace
        self._workspaces.append(FactorReadoutWorkspace(self._head_precision))
        return self._workspaces[-1]

    def _apply(self, *args: Any, **options: Any) -> Any:
        # Other devices and dtypes have no use for the memory.
        self._workspaces.clear()
        return super()._apply(*args, **options)  # type: ignore[no-untyped-call]

    def _make_selectors(self) -> None:
        outputs = {"space": 2 * self.config.samples, "layer": len(self.layers), "scale": 1}
        for axis, count in outputs.items():
            if not getattr(self.config, f"{axis}_selector"):
                continue
            free = not self.config.topology
            selector = FreeSelector(self.V, count) if free else Selector(count)
            if axis == "space" and self.config.samples > 1:
                _spread_samples(selector)
            self.add_module(f"select_{axis}", selector)

    def _standard(self, tokens: torch.Tensor, scale: str, index: int) -> torch.Tensor:
        if not self.config.standardize:
            return tokens
        mean = self.get_buffer(f"mean_{scale}_{index}")
        return (tokens - mean[:, None]) / self.get_buffer(f"std_{scale}_{index}")[:, None]

    def _standard_at_once(self, tokens: torch.Tensor, scale: str) -> torch.Tensor:  # [L,B,P,C]
        mean, std = (
            torch.stack([self.get_buffer(f"{name}_{scale}_{i}") for i in range(len(self.layers))])
            for name in ("mean", "std")
        )
        return (tokens - mean[:, None, None]) / std[:, None, None]

    def _global_bottleneck(self, index: int) -> torch.Tensor:
        shared = self.config.bottleneck == "shared"
        matrix: torch.Tensor = (self.bottleneck_local if shared else self.bottleneck_global)[index]
        return matrix

    def _fold_bottleneck(
        self, scale: str, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        matrix = self.bottleneck_local[index] if scale == "local" else None
        matrix = self._global_bottleneck(index) if matrix is None else matrix
        folded = matrix.double()
        offset = folded.new_zeros(len(folded))
        if self.config.standardize:
            folded = folded / self.get_buffer(f"std_{scale}_{index}").double()
            offset = -folded @ self.get_buffer(f"mean_{scale}_{index}").double()
        return as_float32(folded), as_float32(offset)


def _better_at_once(tokens: Tokens) -> bool:
    """Where layers are alike, a GPU has computed each one's product before the next has started."""
    alike = len(set(tokens.channels)) == 1
    return alike and bool(tokens.local[0].is_cuda)


def _papers_config() -> FactorTopyConfig:
    from .factortopy_config import FactorTopyConfig

    return FactorTopyConfig()


def _spread_samples(selector: nn.Module) -> None:
    # Samples that start at one point have equal gradients and would never part.
    for parameter in selector.parameters():
        last = parameter
    nn.init.normal_(last, std=0.02)


def _check_construction(
    coordinates: torch.Tensor, channels: Sequence[int], layers: Sequence[int]
) -> None:
    shape = tuple(coordinates.shape)
    if len(shape) != 2 or shape[1] != 3 or shape[0] == 0:
        raise BrainfastError("coordinates", expected="[V,3] with V >= 1", got=f"{shape}")
    if not torch.isfinite(coordinates).all():
        raise BrainfastError("coordinates", expected="finite numbers", got="NaN or infinity")
    if not channels or len(channels) != len(layers):
        raise BrainfastError(
            "layers",
            expected="one channel count a layer",
            got=f"{len(layers)} layers and {len(channels)} channel counts",
        )
