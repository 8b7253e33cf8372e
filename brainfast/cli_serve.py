"""`brainfast serve`: a model, its pool and their sessions, over HTTP and ZeroMQ."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _C
from .card import Card
from .cli_options import (
    Device,
    HeadPrecision,
    Json,
    ModelFolder,
    Precision,
    RuntimeName,
    check_sole,
    names,
)
from .errors import BrainfastError
from .files import check_writable

if TYPE_CHECKING:
    from .engine import Engine
    from .group_engine import GroupEngine
    from .pool import Pool

TOKEN_LENGTH = 16  # characters at least
OFF = "off"


def serve(
    model: ModelFolder,
    pool: Annotated[
        Path | None, typer.Option(help="Candidates, as `pool build` writes them; for sessions.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the sessions' logs; without one, no sessions.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pool's pictures, for the page.")
    ] = None,
    http: Annotated[str, typer.Option(help="HOST:PORT, or off.")] = "127.0.0.1:8080",
    zmq: Annotated[
        str, typer.Option(help="tcp://HOST:PORT, ipc:///PATH, or off.")
    ] = "tcp://127.0.0.1:5555",
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients must give; loopback may do without."),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Of a model of several: subj05, or subj01,subj02 (all).")
    ] = None,
    vertices: Annotated[str | None, typer.Option(help="ROIs, e.g. FFA,PPA (all).")] = None,
    runtime: Annotated[RuntimeName, typer.Option(help="Of the trunk.")] = RuntimeName.auto,
    device: Annotated[Device, typer.Option(help="Of the trunk.")] = Device.auto,
    precision: Annotated[HeadPrecision, typer.Option(help="Of the head.")] = HeadPrecision.fp32,
    trunk_precision: Annotated[Precision, typer.Option(help="Of the trunk.")] = Precision.fp32,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the engine (all cores); with one less than there are, sessions have a core to"
            " themselves while images are predicted.",
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Of a request, and of a batch.")] = 32,
    max_request_mb: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that wait for the engine.")] = 64,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions open at once.")] = 16,
    timeout_s: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 30.0,
    stall_s: Annotated[
        float, typer.Option(help="Seconds of a batch after which new requests are refused.")
    ] = 10.0,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that an ending server gives to what was begun.")
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Answer predictions, scores and sessions until SIGTERM or Ctrl-C.

    Prints its addresses, one line, as soon as they are bound; /readyz is 200 once the engine is
    loaded and warm. The page is at the HTTP address. A signal lets what was begun be answered, and
    closes every session's log; a second one ends at once.
    """
    check_installed()
    from .serve.limits import Limits
    from .serve.listening import HttpAddress
    from .serve.run import Plan, check_addresses, run

    limits = Limits(
        images=max_images,
        request_bytes=max_request_mb << 20,
        waiting=waiting,
        sessions=sessions,
        timeout_s=timeout_s,
        stall_s=stall_s,
        drain_s=drain_s,
    )
    token = None if token_file is None else read_token(token_file)
    http_address = None if http == OFF else HttpAddress.parse(http)
    zmq_address = None if zmq == OFF else zmq
    check_addresses(http_address, zmq_address, token)
    source = Source(
        model,
        pool,
        names(subject),
        {
            "runtime": runtime.value,
            "device": device.value,
            "precision": precision.value,
            "trunk_precision": trunk_precision.value,
            "vertices": names(vertices),
            "threads": threads,
        },
    )
    source.check()
    if logs is not None:
        check_writable(logs)
    if images is not None and not images.is_dir():
        raise BrainfastError("--images", expected="a folder", got=str(images))
    run(
        Plan(
            load=source.load,
            name=_name(model),
            http=http_address,
            zmq=zmq_address,
            tell=typer.echo,
            token=token,
            logs=logs,
            images=images,
            limits=limits,
            as_json=as_json,
        )
    )


@dataclass(frozen=True)
class Source:
    """Where engine and pool come from. options: of `Engine.load`."""

    model: Path
    pool: Path | None
    subjects: list[str] | None
    options: dict[str, Any]

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything large is read."""
        from .engine import read_space
        from .pool import Pool

        card = Card.read(self.model)
        check_sole(card, self.subjects)
        everybody: Sequence[str | None] = self.subjects or list(card.subjects) or [None]
        for subject in everybody:
            read_space(self.model, card, subject).select(self.options["vertices"])
        if self.pool is not None and not len(Pool.open(self.pool)):
            raise BrainfastError(
                f"--pool {self.pool}",
                expected="candidates to choose from",
                got="none: all were removed, or could not be read",
                remedy="brainfast pool add",
            )

    def load(self) -> tuple[Engine | GroupEngine, Pool | None]:
        """The engine, and the pool, which must be of the same model."""
        from .engine import Engine
        from .group_engine import GroupEngine
        from .pool import Pool

        subjects = self.subjects or list(Card.read(self.model).subjects)
        engine: Engine | GroupEngine
        if len(subjects) > 1:
            engine = GroupEngine.load(self.model, subjects=subjects, **self.options)
            first = engine.of(subjects[0])
        else:
            engine = first = Engine.load(
                self.model, subject=subjects[0] if subjects else None, **self.options
            )
        _set_threads(self.options["threads"])
        return engine, None if self.pool is None else Pool.open(self.pool, first)


def check_installed() -> None:
    """Refuse to serve without the packages of the extra."""
    from .doctor import SERVE_PACKAGES

    missing = [name for name in SERVE_PACKAGES if find_spec(name) is None]
    if missing:
        raise BrainfastError(
            "serve",
            expected=f"the packages {', '.join(SERVE_PACKAGES)}",
            got=f"none of {', '.join(missing)}",
            remedy="pip install 'brainfast[serve]'",
        )


def read_token(path: Path) -> str:
    """The one line of a token file."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BrainfastError(str(path), expected="a file with a token", got=str(error)) from error
    if len(token) < TOKEN_LENGTH or re.fullmatch(r"[!-~]*", token) is None:
        raise BrainfastError(
            str(path),
            expected=f"one line of at least {TOKEN_LENGTH} printable characters without spaces",
            got=f"{len(token)} characters",
            remedy="make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return token


def _name(model: Path) -> str:
    """The model's name in requests, that of its folder."""
    name = model.resolve().name
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) is None:
        raise BrainfastError(
            "name of the model folder",
            expected="letters, digits, and . _ - after the first",
            got=repr(name),
            remedy="rename it",
        )
    return name


def _set_threads(threads: int | None) -> None:
    """Threads of the head, and of torch where it runs the trunk."""
    if threads is None:
        return
    _C.set_num_threads(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
