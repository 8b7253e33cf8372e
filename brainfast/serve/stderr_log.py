"""The server's log on stderr, written by a thread: a reader that stops must not stop the loop."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener

LINES = 1000  # that wait for a reader; what comes then is lost
LEVELS = {"brainfast.serve": logging.INFO, "uvicorn": logging.WARNING}
FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Dropping(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write what the server logs, and what uvicorn warns of."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(LINES)
    handler, stream = _Dropping(lines), logging.StreamHandler()
    stream.setFormatter(logging.Formatter(FORMAT))
    listener = QueueListener(lines, stream)
    listener.start()
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LEVELS:
            logging.getLogger(name).removeHandler(handler)
        if not lines.full():  # else nobody reads, and it would wait for ever
            listener.stop()
