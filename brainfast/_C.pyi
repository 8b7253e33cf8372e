from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32] | NDArray[np.float64]

def factor_readout_forward(
    local: Float,  # [B,L,D,H,W]
    global_: Float,  # [B,L,D]
    space: Float,  # [V,2]
    layer: Float,  # [V,L]
    scale: Float,  # [V]
    weight: Float,  # [V,D]
    bias: Float,  # [V]
    *,
    align_corners: bool = False,
    isa: str = "",
) -> NDArray[Any]: ...  # [B,V]
def factor_readout_backward(
    grad_output: Float,  # [B,V]
    local: Float,  # [B,L,D,H,W]
    global_: Float,  # [B,L,D]
    space: Float,  # [V,2]
    layer: Float,  # [V,L]
    scale: Float,  # [V]
    weight: Float,  # [V,D]
    *,
    needs: tuple[bool, ...],  # local, global_, space, layer, scale, weight, bias
    align_corners: bool = False,
    isa: str = "",
) -> list[NDArray[Any] | None]: ...

class FactorReadoutPlan:
    def __init__(
        self,
        space: NDArray[np.float32],  # [V,2]
        layer: NDArray[np.float32],  # [V,L]
        scale: NDArray[np.float32],  # [V]
        weight: NDArray[np.float32],  # [V,D]
        bias: NDArray[np.float32],  # [V]
        height: int,
        width: int,
        align_corners: bool = False,
        isa: str = "",
        precision: str = "fp32",
    ) -> None: ...
    def run(
        self,
        local: NDArray[np.float32],  # [B,L,D,H,W]
        global_: NDArray[np.float32],  # [B,L,D]
        out: NDArray[np.float32] | None = None,  # [B,V]
    ) -> NDArray[np.float32]: ...
    def adjoint(
        self,
        grad_output: NDArray[np.float32],  # [O,V]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...  # [O,L,D,H,W], [O,L,D]
    @property
    def vertices(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flops_per_image(self) -> int: ...

class FactorReadoutWorkspace:
    def __init__(
        self,
        vertices: int,
        layers: int,
        channels: int,
        height: int,
        width: int,
        align_corners: bool = False,
        isa: str = "",
        precision: str = "fp32",
    ) -> None: ...
    def forward(
        self,
        local: NDArray[np.float32],  # [B,L,D,H,W]
        global_: NDArray[np.float32],  # [B,L,D]
        space: NDArray[np.float32],  # [V,2]
        layer: NDArray[np.float32],  # [V,L]
        scale: NDArray[np.float32],  # [V]
        weight: NDArray[np.float32],  # [V,D]
        bias: NDArray[np.float32],  # [V]
        out: NDArray[np.float32],  # [B,V]
    ) -> None: ...
    def backward(
        self,
        grad_output: NDArray[np.float32],  # [B,V]
        # local, global_, space, layer, scale, weight, bias
        out: Sequence[NDArray[np.float32] | None],
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...

class AlignTokensPlan:
    def __init__(
        self,
        bottleneck_local: Sequence[NDArray[np.float32]],  # [D,C_l] a layer
        bottleneck_global: Sequence[NDArray[np.float32]],  # [D,C_l] a layer
        offset_local: NDArray[np.float32],  # [L,D]
        offset_global: NDArray[np.float32],  # [L,D]
        grid: tuple[int, int],
        pool_space: bool = False,
        isa: str = "",
    ) -> None: ...
    def run(
        self,
        local: Sequence[NDArray[np.float32]],  # [B,C_l,H_l,W_l] a layer
        global_: Sequence[NDArray[np.float32]],  # [B,C_l] a layer
        out: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...  # [B,L,D,H,W], [B,L,D]
    @property
    def layers(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def trunk_channels(self) -> list[int]: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def pool_space(self) -> bool: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flops_per_image(self) -> int: ...

def factor_projection_forward(
    tokens: Float,  # [B,T,C]
    filters: Float,  # [K,C]
    maps: Float,  # [K,T]
    *,
    isa: str = "",
) -> NDArray[Any]: ...  # [B,K]
def factor_projection_backward(
    grad_output: Float,  # [B,K]
    tokens: Float,  # [B,T,C]
    filters: Float,  # [K,C]
    maps: Float,  # [K,T]
    *,
    needs: tuple[bool, ...],  # tokens, filters, maps
    isa: str = "",
) -> list[NDArray[Any] | None]: ...

class FactorProjectionPlan:
    def __init__(
        self,
        filters: Sequence[NDArray[np.float32]],  # [K,C_l] a layer
        maps: Sequence[NDArray[np.float32]],  # [K,T_l] a layer
        bias: NDArray[np.float32] | None = None,  # [K]
        isa: str = "",
        precision: str = "fp32",
    ) -> None: ...
    def run(
        self,
        tokens: Sequence[NDArray[np.float32]],  # [B,T_l,C_l] or [B,C_l,H_l,W_l] a layer
        global_: Sequence[NDArray[np.float32]] | None = None,  # [B,C_l] a layer
        out: NDArray[np.float32] | None = None,  # [B,K]
    ) -> NDArray[np.float32]: ...
    def adjoint(
        self,
        grad_output: NDArray[np.float32],  # [O,K]
    ) -> list[NDArray[np.float32]]: ...  # [O,T_l,C_l] a layer
    @property
    def latent(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def channels(self) -> list[int]: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flops_per_image(self) -> int: ...

def vertex_embed_forward(
    latent: Float,  # [B,K]
    weight: Float,  # [V,K]
    bias: Float,  # [V]
    *,
    isa: str = "",
) -> NDArray[Any]: ...  # [B,V]

class VertexEmbedPlan:
    def __init__(
        self,
        weight: NDArray[np.float32],  # [V,K]
        bias: NDArray[np.float32],  # [V]
        isa: str = "",
        precision: str = "fp32",
    ) -> None: ...
    def run(
        self,
        latent: NDArray[np.float32],  # [B,K]
        out: NDArray[np.float32] | None = None,  # [B,V]
    ) -> NDArray[np.float32]: ...
    def adjoint(
        self,
        grad_output: NDArray[np.float32],  # [O,V]
    ) -> NDArray[np.float32]: ...  # [O,K]
    @property
    def vertices(self) -> int: ...
    @property
    def latent(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flops_per_image(self) -> int: ...

def score_topk(
    pool: NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.int8],  # [N,F]; uint16: bfloat16
    templates: NDArray[np.float32] | NDArray[np.uint16],  # [O,F]
    k: int,
    exclude: NDArray[np.bool_] | None = None,  # [N]
    *,
    scale: NDArray[np.float32] | None = None,  # [N], with int8 alone
    isa: str = "",
    screen: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...  # [O,k], [O,k]

class ScoreTopkPlan:
    def __init__(
        self,
        pool: NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.int8],  # [N,F]
        scale: NDArray[np.float32] | None = None,  # [N], with int8 alone
    ) -> None: ...
    def run(
        self,
        templates: NDArray[np.float32] | NDArray[np.uint16],  # [O,F]
        k: int,
        exclude: NDArray[np.bool_] | None = None,  # [N]
        *,
        isa: str = "",
        screen: bool = True,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...  # [O,k], [O,k]
    @property
    def nbytes(self) -> int: ...

class CudaFactorReadout:
    """In builds with CUDA alone. Memory is (address, bytes); arrays are addresses on `device`."""

    def __init__(
        self,
        vertices: int,
        layers: int,
        channels: int,
        height: int,
        width: int,
        align_corners: bool = False,
        precision: str = "fp32",
    ) -> None: ...
    @property
    def parameter_bytes(self) -> int: ...
    def token_bytes(self, images: int) -> int: ...
    def gradient_bytes(self, images: int) -> int: ...
    def pack(
        self,
        packed: tuple[int, int],
        space: int,  # [V,2]
        layer: int,  # [V,L]
        scale: int,  # [V]
        weight: int,  # [V,D]
        bias: int,  # [V]
        *,
        dtype: str,
        device: int,
        stream: int,
    ) -> None: ...
    def forward(
        self,
        packed: tuple[int, int],
        scratch: tuple[int, int],
        images: int,
        local: int,  # [B,L,D,H,W]
        global_: int,  # [B,L,D]
        *,
        dtype: str,
        out: int,  # [B,V]
        device: int,
        stream: int,
    ) -> None: ...
    def backward(
        self,
        packed: tuple[int, int],
        scratch: tuple[int, int],
        images: int,
        grad_output: int,  # [B,V]
        local: int,  # [B,L,D,H,W]
        global_: int,  # [B,L,D]
        *,
        dtype: str,
        # local, global_, space, layer, scale, weight, bias; 0 where not wanted
        out: Sequence[int],
        device: int,
        stream: int,
    ) -> None: ...

class CudaFactorProjection:
    """In builds with CUDA alone. Memory is (address, bytes); arrays are addresses on `device`.

    Tokens of a layer are (address, strides of image, token and channel, address of the class token
    or 0, its strides of image and channel).
    """

    def __init__(
        self,
        latent: int,
        tokens: Sequence[int],  # T_l a layer
        channels: Sequence[int],  # C_l a layer
        precision: str = "fp32",
    ) -> None: ...
    @property
    def factor_bytes(self) -> int: ...
    def scratch_bytes(self, images: int) -> int: ...
    def gradient_bytes(self, images: int) -> int: ...
    def pack(
        self,
        packed: tuple[int, int],
        filters: Sequence[int],  # [K,C_l] a layer
        maps: Sequence[int],  # [K,T_l] a layer
        bias: int,  # [K], or 0
        *,
        dtype: str,
        device: int,
        stream: int,
    ) -> None: ...
    def forward(
        self,
        packed: tuple[int, int],
        scratch: tuple[int, int],
        images: int,
        tokens: Sequence[tuple[int, tuple[int, int, int], int, tuple[int, int]]],
        *,
        dtype: str,
        out: int,  # [B,K]
        device: int,
        stream: int,
    ) -> None: ...
    def backward(
        self,
        packed: tuple[int, int],
        scratch: tuple[int, int],
        images: int,
        grad_output: int,  # [B,K]
        tokens: Sequence[tuple[int, tuple[int, int, int], int, tuple[int, int]]],  # of one layer
        *,
        dtype: str,
        out: Sequence[int],  # tokens, filters, maps; 0 where not wanted
        device: int,
        stream: int,
    ) -> None: ...

class CudaVertexEmbed:
    """In builds with CUDA alone. Memory is (address, bytes); arrays are addresses on `device`."""

    def __init__(self, vertices: int, latent: int, precision: str = "fp32") -> None: ...
    @property
    def weight_bytes(self) -> int: ...
    def reads_in_place(self, weight: int, *, dtype: str) -> bool: ...
    def pack(
        self,
        packed: tuple[int, int],
        weight: int,  # [V,K]
        bias: int,  # [V]
        *,
        dtype: str,
        device: int,
        stream: int,
    ) -> None: ...
    def forward(
        self,
        packed: tuple[int, int],
        images: int,
        latent: int,  # [B,K]
        *,
        dtype: str,
        out: int,  # [B,V]
        device: int,
        stream: int,
    ) -> None: ...
    def forward_in_place(
        self,
        weight: int,  # [V,K]
        bias: int,  # [V]
        images: int,
        latent: int,  # [B,K]
        *,
        dtype: str,
        out: int,  # [B,V]
        device: int,
        stream: int,
    ) -> None: ...

# In builds with CUDA alone.
CUDA_MOST_CHOICES: int

def cuda_topk_bytes(candidates: int, objectives: int, k: int) -> int: ...
def cuda_score_topk(
    scratch: tuple[int, int],
    shape: tuple[int, int],  # N, F
    pool: int,  # [N,F]
    scale: int,  # [N], or 0
    exclude: int,  # [N], or 0
    objectives: int,
    templates: int,  # [O,F], float32
    k: int,
    *,
    dtype: str,
    out: tuple[int, int],  # [O,k] float32, [O,k] int64
    device: int,
    stream: int,
) -> None: ...
def isa(precision: str = "fp32") -> str: ...
def supported_isas(precision: str = "fp32") -> list[str]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def fma_ceiling(seconds: float = 0.1, isa: str = "") -> float: ...
def build_info() -> dict[str, Any]: ...
def cuda_info(only: int = -1) -> dict[str, Any]: ...
