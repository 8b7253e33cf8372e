"""BlobGPT's projection on CUDA tensors: the compiled kernels over torch's memory and stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from .. import _C
from ..errors import BrainfastError
from . import cuda_kernels, reference_blobgpt
from .cuda_kernels import Precision

NAMES = ("tokens", "filters", "maps")
# B, T, C, K of what is checked: one image; groups of them, slices of channels, tiles of latents.
CHECKED = ((1, 5, 70, 40), (17, 21, 140, 140))
PLAN_CHECKED = (12, 5, 90, 16, 140)  # L, B, T, C, K: units of work with several chunks of tokens
TokenPlace = tuple[int, tuple[int, int, int], int, tuple[int, int]]


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call computes small projections and their
    gradients both ways, in every precision, and waits for them: make it before a graph is captured.
    """
    return cuda_kernels.check_usable(
        "factor_projection", "CudaFactorProjection", device, _difference
    )


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to small problems, or nothing."""
    for images, tokens, channels, latent in CHECKED:
        shapes = ((images, tokens, channels), (latent, channels), (latent, tokens))
        *inputs, grad_output = cuda_kernels.small_problem(device, *shapes, (images, latent))
        narrow = [tensor.bfloat16() for tensor in inputs]
        problem = (
            _compare("fp32", inputs, grad_output)
            or _compare("bf16", narrow, grad_output)
            or _compare_plan("bf16x3", *([tensor] for tensor in inputs))
        )
        if problem:
            return problem
    layers, images, tokens, channels, latent = PLAN_CHECKED
    shapes = ((images, tokens, channels), (latent, channels), (latent, tokens))
    numbers = cuda_kernels.small_problem(device, *(s for s in shapes for _ in range(layers)))
    many = [numbers[first : first + layers] for first in range(0, 3 * layers, layers)]
    rounded = [[tensor.bfloat16() for tensor in part] for part in many]
    return (
        _compare_plan("fp32", *many)
        or _compare_plan("bf16x3", *many)
        or _compare_plan("bf16", *rounded)
    )


def _compare(
    precision: Precision, inputs: Sequence[torch.Tensor], grad_output: torch.Tensor
) -> str:
    """The operator and its gradients with torch's in float32, which `inputs` lose nothing in."""
    wide = [tensor.float() for tensor in inputs]
    tokens, filters, maps = inputs
    return cuda_kernels.compare(
        [f"latents in {precision}"],
        [forward(tokens, filters, maps)],
        [reference_blobgpt.factor_projection(*wide)],
    ) or cuda_kernels.compare(
        [f"gradients of {name} in {precision}" for name in NAMES],
        backward(grad_output, tokens, filters, maps, [True] * 3),
        reference_blobgpt.factor_projection_backward(grad_output, *wide),
        cuda_kernels.GRADIENT_TOLERANCE[precision],
    )


def _compare_plan(
    precision: Precision,
    tokens: Sequence[torch.Tensor],  # [B,T,C] a layer
    filters: Sequence[torch.Tensor],  # [K,C] a layer
    maps: Sequence[torch.Tensor],  # [K,T] a layer
) -> str:
    """The same of a plan's answers."""
    layers = zip(tokens, filters, maps, strict=True)
    wide = [[tensor.float() for tensor in layer] for layer in layers]
    each = torch.stack([reference_blobgpt.factor_projection(*layer) for layer in wide])
    plan = CudaFactorProjectionPlan(filters, maps, precision=precision)
    names = [f"latents of a plan in {precision}"]
    return cuda_kernels.compare(names, [plan.run(tokens)], [each.sum(dim=0)])


def forward(
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
) -> torch.Tensor:  # [B,K], float32
    """The projection of `factor_projection`, of checked CUDA tensors that are not float64.

    Strict float32; where all three are bfloat16, their products run on tensor cores, which loses
    nothing. Nothing is waited for, so a CUDA graph can hold it.
    """
    if not len(tokens) or not len(filters):
        return tokens.new_zeros(len(tokens), len(filters), dtype=torch.float32)
    precision = cuda_kernels.shared_precision(tokens, filters, maps)
    return CudaFactorProjectionPlan([filters], [maps], precision=precision).run([tokens])


def backward(
    grad_output: torch.Tensor,  # [B,K]
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
    needs: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of `forward` in the order of its arguments, float32, None where not needed.

    The same bits on every run. Where all three are bfloat16, the products of grad_output with the
    maps are rounded to bfloat16 too.
    """
    tensors = (tokens, filters, maps)
    empty = not len(tokens) or not len(filters)
    make = torch.zeros if empty else torch.empty
    grads = [
        make(tensor.shape, dtype=torch.float32, device=tensor.device) if need else None
        for tensor, need in zip(tensors, needs, strict=True)
    ]
    if empty:
        return grads
    plan = CudaFactorProjectionPlan(
        [filters], [maps], precision=cuda_kernels.shared_precision(*tensors)
    )
    images = len(tokens)
    scratch = cuda_kernels.allocate(plan.kernels.gradient_bytes(images), tokens.device, images)
    dtype = cuda_kernels.shared_dtype(tokens)
    tokens = tokens.to(dtype)
    grad_output = grad_output.float().contiguous()
    plan.kernels.backward(
        cuda_kernels.block(plan.packed),
        cuda_kernels.block(scratch),
        *(images, grad_output.data_ptr(), [_place(tokens, None)]),
        dtype=cuda_kernels.name_of(dtype),
        out=[0 if grad is None else grad.data_ptr() for grad in grads],
        **cuda_kernels.queue(tokens.device),
    )
    return grads


class CudaFactorProjectionPlan:
    """Several layers' projections and their sum, with the factors packed once on a CUDA device.

    latent = sum_l factor_projection(tokens_l, filters_l, maps_l) + bias. A run is two launches for
    all layers on torch's current stream, which a CUDA graph can capture; a plan made on one stream
    may be run on another once the first has come past its making. `precision` is that of tokens,
    filters and maps; bias and sums are float32. All are CUDA tensors of one device, at most 32
    layers. Errors: BrainfastError, before a launch. Source: BlobGPT, "Feature projection".
    """

    def __init__(
        self,
        filters: Sequence[torch.Tensor],  # [K,C_l] a layer
        maps: Sequence[torch.Tensor],  # [K,T_l] a layer
        bias: torch.Tensor | None = None,  # [K]
        *,
        precision: Precision = "fp32",
    ) -> None:
        _check_factors(filters, maps, bias)
        self.latent, self._device = len(filters[0]), filters[0].device
        self.tokens = [matrix.shape[1] for matrix in maps]
        self.channels = [matrix.shape[1] for matrix in filters]
        if not self.latent:
            return
        self.kernels = _C.CudaFactorProjection(
            self.latent, self.tokens, self.channels, precision=precision
        )
        self.packed = cuda_kernels.allocate(self.kernels.factor_bytes, self._device, 1)
        dtype = cuda_kernels.shared_dtype(*filters, *maps)
        filters, maps = (
            [tensor.to(dtype).contiguous() for tensor in part] for part in (filters, maps)
        )
        bias = None if bias is None else bias.float().contiguous()
        self._made = cuda_kernels.queue(self._device)
        self.kernels.pack(
            cuda_kernels.block(self.packed),
            [tensor.data_ptr() for tensor in filters],
            [tensor.data_ptr() for tensor in maps],
            0 if bias is None else bias.data_ptr(),
            dtype=cuda_kernels.name_of(dtype),
            **self._made,
        )

    def run(
        self,
        tokens: Sequence[torch.Tensor],  # [B,T_l,C_l] or [B,C_l,H_l,W_l] a layer
        global_: Sequence[torch.Tensor] | None = None,  # [B,C_l] a layer: token 0 of the maps
        out: torch.Tensor | None = None,  # [B,K], float32
    ) -> torch.Tensor:  # [B,K], float32
        """The latent, written into `out` where given. Tokens are read where and as they lie."""
        self._check_layers(tokens, global_)
        images = len(tokens[0])
        parts = [*tokens, *(global_ or [])]
        dtype = cuda_kernels.shared_dtype(*parts)
        local = [self._local(i, part.to(dtype), images, global_) for i, part in enumerate(tokens)]
        heads = [None] * len(local) if global_ is None else [part.to(dtype) for part in global_]
        for i, head in enumerate(heads):
            if head is not None:
                self._check(f"global_[{i}]", head, (images, self.channels[i]))
        out = cuda_kernels.make_output(out, (images, self.latent), self._device)
        if not images or not self.latent:
            return out
        scratch = cuda_kernels.allocate(self.kernels.scratch_bytes(images), self._device, images)
        queue = cuda_kernels.queue(self._device)
        cuda_kernels.hold(self.packed, self._made, queue)
        self.kernels.forward(
            cuda_kernels.block(self.packed),
            cuda_kernels.block(scratch),
            *(images, [_place(part, head) for part, head in zip(local, heads, strict=True)]),
            dtype=cuda_kernels.name_of(dtype),
            out=out.data_ptr(),
            **queue,
        )
        return out

    def _check_layers(
        self, tokens: Sequence[torch.Tensor], global_: Sequence[torch.Tensor] | None
    ) -> None:
        for name, parts in (("tokens", tokens), ("global_", global_)):
            if parts is not None and len(parts) != len(self.tokens):
                raise BrainfastError(
                    name, expected=f"a list of {len(self.tokens)}", got=f"one of {len(parts)}"
                )
            for i, part in enumerate(parts or []):
                cuda_kernels.check_number(f"{name}[{i}]", part)

    def _local(
        self,
        layer: int,
        tensor: torch.Tensor,  # [B,T,C] or [B,C,H,W]
        images: int,
        global_: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor:  # [B,T,C], or [B,T-1,C] with a class token
        """A view with the tokens second, checked."""
        name, channels = f"tokens[{layer}]", self.channels[layer]
        places = self.tokens[layer] - (global_ is not None)
        if tensor.ndim == 4:
            if tensor.shape[2] * tensor.shape[3] != places:
                raise BrainfastError(
                    name,
                    expected=f"[B,C,H,W] with H*W = {places}",
                    got=f"shape {list(tensor.shape)}",
                )
            tensor = tensor.flatten(2).transpose(1, 2)
        elif global_ is not None or tensor.ndim != 3:
            forms = "[B,C,H,W]" if global_ is not None else "[B,T,C] or [B,C,H,W]"
            raise BrainfastError(name, expected=forms, got=f"shape {list(tensor.shape)}")
        self._check(name, tensor, (images, places, channels))
        return tensor

    def _check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        cuda_kernels.check_place(name, tensor, shape, self._device)


def _place(
    local: torch.Tensor,  # [B,T,C], or [B,T-1,C] behind a class token
    head: torch.Tensor | None,  # [B,C]
) -> TokenPlace:
    """Addresses and strides of a layer's tokens."""
    image, token, channel = local.stride()
    place = (local.data_ptr(), (image, token, channel))
    if head is None:
        return *place, 0, (0, 0)
    return *place, head.data_ptr(), (head.stride(0), head.stride(1))


def _check_factors(
    filters: Sequence[torch.Tensor], maps: Sequence[torch.Tensor], bias: torch.Tensor | None
) -> None:
    if not filters:
        raise BrainfastError("filters", expected="a tensor [K,C] for each layer", got="none")
    if len(maps) != len(filters):
        raise BrainfastError(
            "maps", expected=f"a list of {len(filters)}", got=f"one of {len(maps)}"
        )
    latent, device = len(filters[0]), filters[0].device
    for name, letter, parts in (("filters", "C", filters), ("maps", "T", maps)):
        for i, part in enumerate(parts):
            label = f"{name}[{i}]"
            cuda_kernels.check_number(label, part)
            if part.ndim != 2 or not part.shape[1]:
                raise BrainfastError(
                    label, expected=f"[K,{letter}], not empty", got=f"shape {list(part.shape)}"
                )
            cuda_kernels.check_place(label, part, (latent, part.shape[1]), device)
    if bias is not None:
        cuda_kernels.check_number("bias", bias)
        cuda_kernels.check_place("bias", bias, (latent,), device)
