"""Addresses of the ZeroMQ server: `ipc:///path/of/a/socket` or `tcp://127.0.0.1:5555`."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

from ..errors import BrainfastError

CLAIM_S = 5.0  # for another server that begins in the same folder


@dataclass(frozen=True)
class Address:
    """A socket file, or else a host, as ZeroMQ takes it, and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def url(self) -> str:
        """As ZeroMQ binds and connects it."""
        return f"tcp://{self.host}:{self.port}" if self.path is None else f"ipc://{self.path}"

    @property
    def local(self) -> bool:
        """Whether programs of this machine alone can reach it."""
        if self.path is not None:
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address that is well formed; "localhost" is 127.0.0.1, "*" every one of the machine.

        ipc:// needs a path that fits a socket's name; one without a file, as in "ipc://@name", has
        no owner, and is refused.
        """
        scheme, _, rest = text.partition("://")
        if scheme == "ipc" and rest and rest[0] not in "@*" and "\0" not in rest:
            return cls(path=_checked(Path(rest)))
        host, colon, port = rest.rpartition(":")
        known = host and colon and port.isascii() and port.isdecimal() and int(port) < 1 << 16
        if scheme != "tcp" or not known or any(sign in rest for sign in "/;@ \0"):
            raise BrainfastError(
                "address", expected="ipc:///path/of/a/socket or tcp://HOST:PORT", got=repr(text)
            )
        return cls(host="127.0.0.1" if host == "localhost" else host, port=int(port))


def check_address(address: str, token: str | None = None) -> Address:
    """The address of a server, refused where others could reach it and no token keeps them out."""
    parsed = Address.parse(address)
    if not parsed.local and not token:
        raise BrainfastError(
            "address",
            expected="ipc:// or a loopback address where there is no token",
            got=repr(address),
            remedy="give a token, or serve tcp://127.0.0.1 and let others in through ssh -L",
        )
    return parsed


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Bind the socket file meanwhile: what a server that ended left there is removed before.

    One that a living server answers at is a BrainfastError, and so is a file of another kind.
    Programs that claim a path of the same folder wait for each other. The file that is made is for
    this user alone.
    """
    try:
        with _locked(path.parent):
            _remove_stale(path)
            mask = os.umask(0o077)
            try:
                yield
            finally:
                os.umask(mask)
            path.chmod(0o600)
    except OSError as error:
        raise BrainfastError(
            f"ipc://{path}",
            expected="a folder that sockets can be made in",
            got=error.strerror or str(error),
        ) from error


def remove_own(path: Path, inode: int) -> None:
    """Remove a socket file, unless it is no longer the one of this number."""
    with suppress(OSError), _locked(path.parent):
        if path.lstat().st_ino == inode:
            path.unlink()


def _checked(path: Path) -> Path:
    size = len(os.fsencode(path))
    if size > zmq.IPC_PATH_MAX_LEN:
        raise BrainfastError(
            "address",
            expected=f"a socket's path of at most {zmq.IPC_PATH_MAX_LEN} bytes",
            got=f"{size} in {str(path)!r}",
            remedy="choose a shorter one",
        )
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # not where clients on Windows import this module

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + CLAIM_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise BrainfastError(
            f"ipc://{path}", expected="no file or an old socket", got="a file of another kind"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full: it lives
    raise BrainfastError(
        f"ipc://{path}",
        expected="an address of its own",
        got="one that another server answers at",
        remedy="choose another one, or end that server",
    )
