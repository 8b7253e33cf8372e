"""A uint8 image to the response: preprocessing, trunk and head, in each trunk runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from brainfast import forms
from brainfast.bench.check import Bars, response_judge
from brainfast.bench.compare import Builder, Judge
from brainfast.bench.made_up import made_up_head
from brainfast.bench.readout import memory_problem
from brainfast.card import Card, HeadCard, SpaceCard
from brainfast.doctor import package_version
from brainfast.engine import ONNX_FILE, Engine, open_runtime
from brainfast.export.graph import ExportGraph
from brainfast.export.heads import FactorTopyHead
from brainfast.export.onnx import graph_to_model
from brainfast.folded import FoldedFactorTopy
from brainfast.forms import OURS, Call, Form
from brainfast.images import iter_pixels
from brainfast.runtimes import TorchRuntime, open_session, run_session
from brainfast.trunk_export import OPSET, export_trunk, save_model
from brainfast.trunks import Trunk
from brainfast.vertex_space import VertexSpace
from cases import Case
from stage_tokens import AlignedReadout, float64_response


class Runtime(NamedTuple):
    """A way to run the trunk: its name and precision as `Engine.load` takes them."""

    name: str
    precision: str


# The head computes in the precision of the trunk.
RUNTIMES = (
    Runtime("torch", "fp32"),
    Runtime("onnx", "fp32"),
    Runtime("compile", "fp32"),
    Runtime("torch", "bf16"),
    Runtime("compile", "bf16"),
)
IMAGE_BARS: Bars = {"fp32": ("max", 1e-4), "bf16": ("rms", 2e-2)}


@dataclass(frozen=True)
class ImageStage:
    """The engine in every runtime, and the paper's code behind torch's trunk; calls take uint8
    images [B,H,W,3]."""

    case: Case
    trunk: Trunk
    head: FoldedFactorTopy
    folder: Path
    threads: int
    bars = IMAGE_BARS

    @classmethod
    def open(cls, case: Case, folder: Path, threads: int) -> ImageStage:
        """A trunk with random weights, exported to `folder`, and a made-up head that reads it."""
        size = None if case.image_px >= 224 else 32
        trunk = Trunk.create(
            case.trunk, pretrained=False, layers=range(case.L), **({"size": size} if size else {})
        )
        head = made_up_head(case.V, case.L, case.D, channels=case.C, grid=(case.side, case.side))
        export_trunk(trunk, folder / ONNX_FILE)
        return cls(case, trunk, head, folder, threads)

    def builders(self) -> list[Builder]:
        """One engine a runtime, the compiled one where the case asks, then Listing 1 in torch."""
        engines: list[Builder] = [
            (f"trunk, {runtime.name} {runtime.precision}", partial(self._engines, runtime))
            for runtime in RUNTIMES
            if runtime.name != "compile" or self.case.compiled
        ]
        engines.append(("exported file", lambda: [self._exported()]))
        return [*engines, ("Listing 1", lambda: [self._listing1()] if self.case.listing1 else [])]

    def problem(self, form: Form, batch: int) -> str | None:
        """Listing 1 takes part at some batch sizes, and where its memory allows."""
        if forms.LISTING1 not in form.name:
            return None
        problem = memory_problem(forms.listing1_bytes(self.head, batch))
        return problem or (None if batch in self.case.listing1 else "left out: too slow")

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Smooth random photographs, uint8 [B,H,W,3]."""
        side, rng = self.case.image_px, np.random.default_rng(batch)
        coarse = torch.from_numpy(rng.random((batch, 3, 9, 9), np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        return ((255 * smooth).byte().permute(0, 2, 3, 1).contiguous().numpy(),)

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Trunk, alignment and readout in float64 on the same pixels."""
        pixels = self._pixels(inputs[0])
        double = Trunk.from_config(self.trunk.config).double()
        with torch.inference_mode():
            tokens = double(torch.from_numpy(pixels).double()).map(lambda tensor: tensor.numpy())
        expected = float64_response(self.head, (*tokens.local, *tokens.global_))
        return response_judge(expected, self.head.bias, IMAGE_BARS)

    def work(self, precision: str, batch: int) -> None:
        """Not counted: the trunk is not ours."""
        return

    def _engines(self, runtime: Runtime) -> list[Form]:
        opened = open_runtime(
            self.folder, self._card(), runtime.name, "cpu", runtime.precision, self.threads
        )
        head = self.head.with_precision(runtime.precision)
        engine = Engine(opened, head, self._space(), self._card())

        def call(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return engine.predict(images).values

        return [Form(f"engine, {runtime.name} trunk", OURS, runtime.precision, {"": call})]

    def _exported(self) -> Form:
        """All of it in ONNX Runtime, preprocessing included."""
        px, path = self.case.image_px, self.folder / "exported.onnx"

        def build() -> dict[str, Call]:
            head = FactorTopyHead(self.head, None)
            graph = ExportGraph(self.trunk, head, source=(px, px), precision="fp32")
            model = graph_to_model(graph, ["response"], OPSET, "the exported file")
            save_model(model, path, self.trunk.config.weights_hash)
            session = open_session(path, self.threads)
            return {"": lambda images: run_session(session, {"images": images}, ["response"])[0]}

        return forms.stock_form("exported file", forms.ONNX_RUNTIME, "fp32", build)

    def _listing1(self) -> Form:
        trunk = TorchRuntime(self.trunk, device="cpu")
        readout = forms.torch_call(AlignedReadout(self.head, forms.Listing1(self.head)))

        def call(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            tokens = trunk(self._pixels(images))
            return readout(*tokens.local, *tokens.global_)

        return Form(f"trunk + {forms.LISTING1}", "PyTorch", "fp32", {"": call})

    def _pixels(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return next(iter_pixels(images, self.trunk.preprocessing, len(images)))

    def _space(self) -> VertexSpace:
        half = self.case.V // 2
        return VertexSpace("custom", np.arange(half), np.arange(self.case.V - half))

    def _card(self) -> Card:
        space = self._space()
        return Card(
            model=self.head.kind,
            brainfast_version=package_version("brainfast"),
            trunk=self.trunk.config,
            head=HeadCard(grid=self.head.grid),
            space=SpaceCard(
                name=space.name,
                subject=None,
                vertices=space.V,
                rois=(),
                hash=space.hash(),
                rois_hash="",
                surface="none",
                coordinates_hash="",
            ),
            model_hash="",
        )
