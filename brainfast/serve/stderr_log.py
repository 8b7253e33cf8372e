"""The server's log on stderr, written by a thread: a reader that stops must not stop the loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener

LINES = 1000  # that wait for a reader; what comes then is lost
END_S = 1.0  # for the last lines to be read
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
        ending = threading.Thread(target=_stop, args=(listener,), name="log-end", daemon=True)
        ending.start()
        ending.join(END_S)  # where nobody reads, the listener would be waited for without end


def _stop(listener: QueueListener) -> None:
    with suppress(queue.Full):  # nobody reads: its thread ends with the process
        listener.stop()
