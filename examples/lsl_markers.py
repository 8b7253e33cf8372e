"""Markers of a closed loop on Lab Streaming Layer, and a session's log on the clock of LSL.

    python examples/lsl_markers.py logs/sub-01_run-1.jsonl > sub-01_run-1.csv

prints when every choice was decided and every beta was told, in the time of an LSL recording (XDF).
During the run, `psychopy_session.py --lsl` sends markers while it plays, for the recorder to keep:

    {"event": "choice", "session": "sub-01_run-1", "trial": 7, "image": "i.png", "score": 1.2, ...}
    {"event": "onset", "session": "sub-01_run-1", "trial": 7, "image": "i.png"}

The time of an onset is that of the flip. The time of a choice is when this program had it; the
server's own time is in the log, where pylsl is installed beside the server. Both are the clock of
the machine that they ran on: where these are two, correct one as LSL does (time_correction).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brainfast.errors import BrainfastError
from brainfast.loop import read_log

STREAM = "brainfast"
COLUMNS = ("event", "trial", "image", "score", "late", "lsl_s")


class Markers:
    """An outlet of JSON markers; a call takes microseconds and never waits for a listener."""

    def __init__(self, session: str) -> None:
        try:
            import pylsl  # only who sends markers needs it
        except (ImportError, RuntimeError) as error:  # without liblsl it is a RuntimeError
            raise BrainfastError(
                "pylsl",
                expected="pylsl and its library",
                got=str(error),
                remedy="pip install pylsl",
            ) from error
        self.session, self.now = session, pylsl.local_clock
        info = pylsl.StreamInfo(
            STREAM, "Markers", 1, pylsl.IRREGULAR_RATE, pylsl.cf_string, f"{STREAM}-{session}"
        )
        self._outlet = pylsl.StreamOutlet(info)

    def choice(self, choice: Any) -> None:
        """What the session decided: anything with the fields of `brainfast.loop.Choice`."""
        names = ("trial", "image", "score", "uncertainty", "ties", "source", "late", "latency_ms")
        self._push("choice", {name: getattr(choice, name) for name in names})

    def onset(self, trial: int | None, image: str) -> None:
        """An image is on the screen, call it right after the flip; no trial: the fallback."""
        self._push("onset", {"trial": trial, "image": image})

    def _push(self, event: str, about: dict[str, Any]) -> None:
        moment = self.now()
        text = json.dumps({"event": event, "session": self.session, **about})
        self._outlet.push_sample([text], moment)


def times(log: str | Path) -> Iterator[dict[str, Any]]:
    """Every choice, tell and skip of a log, with its time in seconds of LSL's clock."""
    for event in read_log(log).events:
        if event["event"] not in ("choice", "tell", "skip"):
            continue
        if "lsl_s" not in event:
            raise BrainfastError(
                str(log),
                expected="times of LSL's clock",
                got="a session that ran without it",
                remedy="install pylsl where brainfast serve runs",
            )
        yield {name: event.get(name) for name in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="of a session, NAME.jsonl")
    log = parser.parse_args().log
    try:
        rows = list(times(log))
    except (BrainfastError, OSError) as error:
        parser.exit(2, f"lsl_markers: {error}\n")
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


if __name__ == "__main__":
    main()
