"""A training step whose tensors never move: one CUDA graph, replayed step after step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .device_graphs import CAPTURING, recording
from .errors import BrainfastError

LOOK_EVERY = 100  # steps between two looks at the losses, by which the host waits for the device
_WARM_UP = 3

Loss = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class StepError(Exception):
    """A step that could not be computed; the error that tells why is its cause."""

    def __init__(self, number: int, losses: list[float]) -> None:
        super().__init__(f"step {number}")
        self.number = number  # from 0, of the run
        self.losses = losses  # of the steps before it


class StaticStep:
    """loss(rows, strength), its gradients, and a step of the optimiser, again and again.

    `loss` takes the numbers [B] int64 of a batch's images and the weight [] of the regulariser, or
    None where that is 0, and gives the loss []. It may change nothing, and nothing in it may wait
    for the device or depend on a value there. Batches, weights and losses of up to `most` steps lie
    on the device with a cursor that every step moves on, so that between two looks the host only
    launches. Where `capture` is asked for, a CUDA device, a step is one launch of a graph, which
    was captured once with and once without the regulariser; the optimiser must be `capturable`.
    Elsewhere the same operations run one by one, to the same order of steps.

    Every step of a captured run is a replay, the first too, so that a run which goes on from a
    checkpoint has the bits of one that never stopped, on the same device and build.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        batch: int,
        device: torch.device,
        capture: bool,
        most: int = LOOK_EVERY,
    ) -> None:
        self.most, self.capture = most, capture
        self._loss, self._optimizer, self._device = loss, optimizer, device
        self._rows = torch.zeros(most, batch, dtype=torch.int64, device=device)
        self._strengths = torch.zeros(most, device=device)
        self._losses = torch.zeros(most, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def run(
        self,
        rows: NDArray[np.int64],  # [n,B], n <= most
        strengths: Sequence[float],  # n weights of the regulariser
    ) -> list[float]:
        """Take n steps, then wait for them; the loss of each before its step.

        A loss that is not finite does not stop the steps behind it: look at what comes back.
        Errors: StepError where an operation refuses its arguments (never in a captured step).
        """
        regularised = [strength > 0 for strength in strengths]
        if self.capture:
            for kind in set(regularised) - self._graphs.keys():
                self._graphs[kind] = self._captured(kind)
        self._fill(self._rows, torch.from_numpy(rows))
        self._fill(self._strengths, torch.tensor(strengths, dtype=torch.float32))
        self._cursor.zero_()
        for number, kind in enumerate(regularised):
            if self.capture:
                self._graphs[kind].replay()
                continue
            try:
                self._advance(kind)
            except BrainfastError as error:
                raise StepError(number, self._losses[:number].tolist()) from error
        taken: list[float] = self._losses[: len(regularised)].tolist()
        return taken

    def _advance(self, regularised: bool) -> None:
        rows = self._rows.index_select(0, self._cursor)[0]
        strength = self._strengths.index_select(0, self._cursor)[0] if regularised else None
        loss = self._loss(rows, strength)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        self._optimizer.step()
        self._losses.index_copy_(0, self._cursor, loss.detach().reshape(1))
        self._cursor.add_(1)

    def _captured(self, regularised: bool) -> torch.cuda.CUDAGraph:
        """The graph of a step; parameters and moments are as before when it is there."""
        with CAPTURING, torch.cuda.device(self._device):
            side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                before = self._copies()
                # Libraries and kernels set themselves up in their first calls, the optimiser makes
                # its moments: none of that may happen in a capture.
                for _ in range(_WARM_UP):
                    self._rows.zero_()
                    self._cursor.zero_()
                    self._advance(regularised)
                self._restore(before)
                self._optimizer.zero_grad(set_to_none=True)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with recording(graph, side, self._pool):
                self._advance(regularised)
            # Both graphs keep their memory in one pool: nothing in it outlives a step.
            self._pool = graph.pool()
        return graph

    def _copies(self) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Of every parameter, and of its moments where it has any."""
        return [
            (
                parameter.detach().clone(),
                {name: value.clone() for name, value in self._moments(parameter).items()},
            )
            for parameter in self._parameters()
        ]

    @torch.no_grad()
    def _restore(self, before: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> None:
        for parameter, (value, moments) in zip(self._parameters(), before, strict=True):
            parameter.copy_(value)
            for name, moment in self._moments(parameter).items():
                if name in moments:
                    moment.copy_(moments[name])
                else:
                    moment.zero_()

    def _moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self._optimizer.state.get(parameter, {})
        return state

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _fill(self, table: torch.Tensor, values: torch.Tensor) -> None:
        if self._device.type == "cuda":
            values = values.pin_memory()
        table[: len(values)].copy_(values, non_blocking=True)
