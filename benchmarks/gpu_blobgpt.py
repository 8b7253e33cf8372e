"""BlobGPT on a GPU: projection, embedding, and the whole head, folded and as it was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from brainfast import forms
from brainfast.bench.check import BARS, Bars, response_judge
from brainfast.folded import PRECISIONS
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.forms import OURS
from brainfast.ops import factor_projection, vertex_embed
from brainfast.ops.factor_projection_cuda import CudaFactorProjectionPlan
from brainfast.ops.vertex_embed_cuda import CudaVertexEmbedPlan
from brainfast.tokens import Tokens
from cases import Case
from ceilings import Work, blobgpt_work, embed_work, projection_work
from gpu_compare import GpuForm, Judge, Run
from stock_blobgpt import DTYPES, FILTERS, ORDERS, Folded, FoldedProjection, Unfolded

# Stock bf16 rounds tokens, what comes of the first product, and products of the second.
BLOBGPT_BARS: Bars = {**BARS, "bf16": ("rms", 1e-2)}
UNFOLDED_BARS: Bars = {**BLOBGPT_BARS, "bf16": ("rms", 2e-2)}  # latent and activity too

Build = Callable[[], Run]


@dataclass(frozen=True)
class MadeUp:
    """Constants of one subject whose numbers have the sizes of a trained model's, on a device."""

    case: Case
    device: torch.device
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator(self.device).manual_seed(0))

    @cached_property
    def model(self) -> Any:
        """What `stock_blobgpt.Unfolded` reads of a BlobGPT; BatchNorm fits standard normal
        tokens."""
        case = self.case
        filters = [self._uniform(case.K, case.C) for _ in range(case.L)]
        maps = [self._uniform(case.K, case.T) for _ in range(case.L)]
        return SimpleNamespace(
            filters=filters,
            maps=maps,
            norms=nn.ModuleList(self._norm(*pair) for pair in zip(filters, maps, strict=True)),
            shared=self._uniform(case.R, case.K),
            subject_weight=self._uniform(1, case.R, case.K),
            subject_bias=self._normal(1, case.R) * 0.1,
            weight=self._normal(case.V, case.R) / case.R**0.5,
            bias=self._normal(case.V) * 0.1,
        )

    @cached_property
    def projection(self) -> BlobProjection:
        """BatchNorm and the layer mean multiplied into the filters."""
        filters, offset = [], torch.zeros(self.case.K, dtype=torch.float64, device=self.device)
        for norm, matrix in zip(self.model.norms, self.model.filters, strict=True):
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            share = gain / self.case.L
            filters.append(_numpy(matrix.double() * share[:, None]))
            offset += norm.bias.double() / self.case.L - share * norm.running_mean.double()
        return BlobProjection(
            filters=tuple(filters),
            maps=tuple(_numpy(matrix) for matrix in self.model.maps),
            latent_bias=_numpy(offset),
            layers=tuple(range(self.case.L)),
            grids=((self.case.raw, self.case.raw),) * self.case.L,
            class_token=True,
        )

    @cached_property
    def embedding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The folded matrix [V,K] and bias [V]."""
        model, basis = self.model, self.model.weight.double()
        activity = model.shared.double() + model.subject_weight[0].double()
        weight = (basis @ activity).float()
        return weight, (model.bias.double() + basis @ model.subject_bias[0].double()).float()

    def tokens(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal [B,C,H,W] of every layer, then [B,C]."""
        generator, case = torch.Generator(self.device).manual_seed(number + 1), self.case
        shapes = [(batch, case.C, case.raw, case.raw)] * case.L + [(batch, case.C)] * case.L
        return tuple(torch.randn(s, generator=generator, device=self.device) for s in shapes)

    @torch.inference_mode()
    def float64_latent(self, sequences: Sequence[torch.Tensor]) -> torch.Tensor:  # [B,K]
        """Projection, BatchNorm and mean in float64, unfolded, of [B,T,C] of every layer."""
        model, parts = self.model, []
        layers = zip(sequences, model.filters, model.maps, model.norms, strict=True)
        for tokens, filters, maps, norm in layers:
            filtered = tokens.double() @ filters.double().T
            part = torch.einsum("btk,kt->bk", filtered, maps.double())
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            parts.append((part - norm.running_mean.double()) * scale + norm.bias.double())
        return torch.stack(parts).mean(0)

    def _norm(self, filters: torch.Tensor, maps: torch.Tensor) -> nn.BatchNorm1d:
        norm = nn.BatchNorm1d(self.case.K, device=self.device).eval().requires_grad_(False)
        norm.running_var.copy_(filters.square().sum(1) * maps.square().sum(1))
        norm.running_mean.copy_(0.1 * self._normal(self.case.K))
        norm.weight.copy_(1 + 0.1 * self._normal(self.case.K))
        norm.bias.copy_(0.1 * self._normal(self.case.K))
        return norm

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def _uniform(self, *shape: int) -> torch.Tensor:
        values = torch.rand(*shape, generator=self.generator, device=self.device)
        return (2 * values - 1) / shape[-1] ** 0.5


def has_plans(device: torch.device) -> bool:
    """Whether kernels run there; where they should and cannot, their rows say why."""
    return device.type == "cuda"


@dataclass(frozen=True)
class GpuProjection:
    """Calls take [B,T,C] of every layer and answer the latent [B,K]."""

    case: Case
    made: MadeUp
    bars = BLOBGPT_BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuProjection:
        """Make up a model."""
        return cls(case, MadeUp(case, device))

    def forms(self) -> list[GpuForm]:
        """The plan, the operator, then torch in both orders of its two products."""
        found = []
        if has_plans(self.made.device):
            found = [
                self._form("plan", OURS, precision, {"": lambda p=precision: self._plan(p)})
                for precision in PRECISIONS
            ]
        for library in (OURS, forms.TORCH):
            for precision, dtype in DTYPES.items():
                name = "operator" if library == OURS else "projection"
                ours: dict[str, Build] = {"": lambda dtype=dtype: self._operator(dtype)}
                stock: dict[str, Build] = {
                    order: lambda order=order, dtype=dtype: self._stock(order, dtype)
                    for order in ORDERS
                }
                builds = ours if library == OURS else stock
                found.append(self._form(name, library, precision, builds))
        return found

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal tokens, the class token first."""
        return _sequences(self.made.tokens(batch, number))

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """Against the unfolded projection in float64."""
        expected = self.made.float64_latent(inputs).cpu().numpy()
        judge = response_judge(expected, self.made.projection.latent_bias, self.bars)
        return lambda form, found: judge(form, found.float().cpu().numpy())

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.projection_work`."""
        return projection_work(self.case, batch, precision)

    def _plan(self, precision: str) -> Run:
        filters, maps, bias = self._factors(torch.float32)
        plan = CudaFactorProjectionPlan(filters, maps, bias, precision=precision)
        return lambda *tokens: plan.run(tokens)

    def _factors(
        self, dtype: torch.dtype
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        head, device = self.made.projection, self.made.device
        filters, maps = (
            [torch.tensor(array, device=device).to(dtype) for array in each]
            for each in (head.filters, head.maps)
        )
        return filters, maps, torch.tensor(head.latent_bias, device=device)

    def _operator(self, dtype: torch.dtype) -> Run:
        filters, maps, bias = self._factors(dtype)

        def run(*tokens: torch.Tensor) -> torch.Tensor:
            latent = bias
            for part, *constants in zip(tokens, filters, maps, strict=True):
                latent = latent + factor_projection(part.to(dtype), *constants)
            return latent

        return run

    def _stock(self, order: str, dtype: torch.dtype) -> Run:
        module = FoldedProjection(self.made.projection, order, dtype, grids=False)
        return module.to(self.made.device)

    def _form(self, name: str, library: str, precision: str, builds: dict[str, Build]) -> GpuForm:
        case, width = self.case, 2 if precision == "bf16" else 4
        size = width * case.L * case.K * (case.C + case.T)

        def needs(batch: int) -> int:
            return 3 * width * batch * case.T * (case.K + case.C)

        return GpuForm(name, library, precision, builds, weight_bytes=size, needs=needs)


@dataclass(frozen=True)
class GpuEmbed:
    """Calls take the latent [B,K] and answer [B,V]."""

    case: Case
    made: MadeUp
    bars = BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuEmbed:
        """Make up a folded matrix."""
        return cls(case, MadeUp(case, device))

    def forms(self) -> list[GpuForm]:
        """The plan, the operator, and torch's linear."""
        calls = (("operator", OURS, vertex_embed), ("linear", forms.TORCH, nn.functional.linear))
        size = self.case.V * (self.case.K + 1)
        plans = [
            GpuForm(
                *("plan", OURS, precision),
                {
                    "": lambda p=precision: (
                        CudaVertexEmbedPlan(*self.made.embedding, precision=p).run
                    )
                },
                weight_bytes=(2 if precision == "bf16" else 4) * size,
            )
            for precision in PRECISIONS
            if has_plans(self.made.device)
        ]
        return plans + [
            GpuForm(
                *(name, library, precision),
                {"": lambda call=call, dtype=dtype: self._build(call, dtype)},
                weight_bytes=dtype.itemsize * size,
            )
            for name, library, call in calls
            for precision, dtype in DTYPES.items()
        ]

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """A standard normal latent."""
        device = self.made.device
        generator = torch.Generator(device).manual_seed(number + 1)
        return (torch.randn(batch, self.case.K, generator=generator, device=device),)

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """Against float64."""
        weight, bias = self.made.embedding
        expected = inputs[0].double() @ weight.double().T + bias.double()
        judge = response_judge(expected.cpu().numpy(), bias.cpu().numpy(), self.bars)
        return lambda form, found: judge(form, found.float().cpu().numpy())

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.embed_work`."""
        return embed_work(self.case, batch, precision)

    def _build(self, call: Run, dtype: torch.dtype) -> Run:
        weight, bias = (tensor.to(dtype, copy=True) for tensor in self.made.embedding)
        return lambda latent: call(latent.to(dtype), weight, bias)


@dataclass(frozen=True)
class GpuBlobGPT:
    """Calls take [B,C,H,W] of every layer, then [B,C], and answer [B,V] of one subject."""

    case: Case
    made: MadeUp
    bars = UNFOLDED_BARS

    @classmethod
    def open(cls, case: Case, device: torch.device) -> GpuBlobGPT:
        """Make up a model and fold it."""
        return cls(case, MadeUp(case, device))

    def forms(self) -> list[GpuForm]:
        """Ours, folded; torch folded and unfolded, eager and compiled."""
        found = [self._ours(precision) for precision in PRECISIONS]
        for name, build in (("head, folded", self._folded), ("head, unfolded", self._unfolded)):
            for precision, dtype in DTYPES.items():
                eager: dict[str, Build] = {
                    order: lambda build=build, order=order, dtype=dtype: build(order, dtype)
                    for order in ORDERS
                }
                found.append(self._form(name, forms.TORCH, precision, eager))
                if self.case.compiled:
                    compiled: dict[str, Build] = {
                        FILTERS: lambda build=build, dtype=dtype: torch.compile(
                            build(FILTERS, dtype), dynamic=False, fullgraph=True
                        )
                    }
                    more = {"alone": True, "batches": self.case.compiled}
                    found.append(self._form(name, forms.COMPILED, precision, compiled, **more))
        return found

    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]:
        """Standard normal tokens as the trunk's interface gives them."""
        return self.made.tokens(batch, number)

    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge:
        """The whole head in float64, unfolded but for the sum of its two maps."""
        judge = response_judge(self.float64(inputs).cpu().numpy(), self.bias, self.bars)
        return lambda form, found: judge(form, found.float().cpu().numpy())

    def work(self, precision: str, batch: int) -> Work:
        """See `ceilings.blobgpt_work`."""
        return blobgpt_work(self.case, batch, precision)

    @property
    def bias(self) -> np.ndarray:  # [V]
        """The mean that the embedding adds."""
        return _numpy(self.made.model.bias)

    def device_head(self, precision: str, layers: tuple[int, ...]) -> Any:
        """The folded head on the device, of tokens of these layers."""
        from brainfast.device_heads import DeviceBlobGPT

        projection = replace(self.made.projection.with_precision(precision), layers=layers)
        weight, bias = (_numpy(tensor) for tensor in self.made.embedding)
        heads = {"": FoldedBlobGPT(projection, weight, bias)}
        return DeviceBlobGPT(projection, heads, self.made.device)

    @torch.inference_mode()
    def float64(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:  # [B,V]
        """The whole head, unfolded but for the sum of its two maps."""
        model, latent = self.made.model, self.made.float64_latent(_sequences(tokens))
        activity = latent @ (model.shared.double() + model.subject_weight[0].double()).T
        activity = activity + model.subject_bias[0].double()
        return activity @ model.weight.double().T + model.bias.double()

    def _ours(self, precision: str) -> GpuForm:
        def build() -> Run:
            layers = self.case.L
            numbers = tuple(range(layers))
            head = self.device_head(precision, numbers)
            return lambda *tokens: head(Tokens(tokens[:layers], tokens[layers:], numbers))

        return self._form("compiled head, folded", OURS, precision, {"": build})

    def _folded(self, order: str, dtype: torch.dtype) -> Run:
        weight, bias = self.made.embedding
        projection = FoldedProjection(self.made.projection, order, dtype, grids=True)
        projection = projection.to(self.made.device)
        head = Folded(projection, weight[None].clone(), bias[None].clone())
        return lambda *tokens: head(*tokens)[:, 0]

    def _unfolded(self, order: str, dtype: torch.dtype) -> Run:
        head = Unfolded(self.made.model, order, dtype)
        return lambda *tokens: head(*tokens)[:, 0]

    def _form(
        self, name: str, library: str, precision: str, builds: dict[str, Build], **more: Any
    ) -> GpuForm:
        case, width = self.case, 2 if precision == "bf16" else 4
        size = width * (case.L * case.K * (case.C + case.T) + case.V * case.K)

        def needs(batch: int) -> int:
            return 3 * width * batch * case.T * (case.K + case.C) * case.L

        return GpuForm(name, library, precision, builds, weight_bytes=size, needs=needs, **more)


def _sequences(tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """[B,C,H,W] of every layer, then [B,C] -> [B,T,C] of every layer, the class token first."""
    layers = len(tokens) // 2
    pairs = zip(tokens[:layers], tokens[layers:], strict=True)
    return tuple(
        torch.cat([summary[:, None], patches.flatten(2).transpose(1, 2)], dim=1)
        for patches, summary in pairs
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().contiguous().numpy()
