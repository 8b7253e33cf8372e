"""A request of the wire as a call of the service, and what came of it as a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import convert

from . import wire
from .array_frames import Array, Frame

if TYPE_CHECKING:
    from .service import Service


def operation(request: wire.AnyRequest) -> str:
    """The name of what is asked: "predict", "next", ..."""
    return str(request.__struct_config__.tag)


async def perform(
    service: Service, request: wire.AnyRequest, arrays: Sequence[Array], timeout_s: float
) -> list[Frame]:
    """The message that answers a request; what the service raises is raised."""
    id = request.id
    match request:
        case wire.AskAbout():
            return wire.to_message(wire.ToldAbout(id=id, about=service.about()))
        case wire.Predict():
            responses = await service.predict(
                arrays, subjects=request.subjects, timeout_s=timeout_s
            )
            reply = wire.Predicted(id=id, subjects=list(responses))
            return wire.to_message(reply, list(responses.values()))
        case wire.Score():
            scores = await service.score(
                arrays, request.objective, subject=request.subject, timeout_s=timeout_s
            )
            return wire.to_message(wire.Scored(id=id), [scores])
        case wire.Select():
            best = await service.select(
                request.objective,
                request.k,
                exclude=request.exclude,
                subject=request.subject,
                timeout_s=timeout_s,
            )
            candidates = convert(best, list[list[wire.Candidate]], from_attributes=True)
            return wire.to_message(wire.Selected(id=id, candidates=candidates))
    return wire.to_message(await _of_session(service, request, arrays))


async def _of_session(
    service: Service, request: wire.AnyRequest, arrays: Sequence[Array]
) -> wire.Reply:
    id = request.id
    match request:
        case wire.Next():
            choice = await service.next(request.session, request.trial, objective=request.objective)
            return wire.Chosen(id=id, choice=convert(choice, wire.Choice, from_attributes=True))
        case wire.Tell():
            # A frame may begin at any byte, and kernels need theirs aligned.
            betas = np.array(arrays[0])
            await service.tell(request.session, request.trial, betas, subject=request.subject)
        case wire.Skip():
            await service.skip(request.session, request.trial)
        case wire.Open():
            state = await service.open_session(
                request.session, request.options, again=request.again
            )
            return wire.State(id=id, state=state)
        case wire.AskSession():
            return wire.State(id=id, state=await service.session(request.session))
        case wire.Close():
            await service.close_session(request.session)
    return wire.Done(id=id)
