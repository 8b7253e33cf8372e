"""A closed loop in PsychoPy: `brainfast serve` chooses every image, and no frame waits for it.

    brainfast serve subj01 --pool candidates-subj01 --logs logs --zmq ipc:///tmp/brainfast.sock
    python examples/psychopy_session.py --session sub-01_run-1 --objective "FFA - PPA" \
        --pictures candidates --fallback neutral.png --address ipc:///tmp/brainfast.sock

What takes time (server, disk, GLM) happens on threads of its own. The drawing loop looks once a
frame whether it is done. What was shown when is in SESSION.csv, a line an image.

- The server is asked a second before the onset, when the betas of earlier images are in.
- If nothing is there when the image must be loaded, the fallback is shown. The choice is not lost:
  the same number is asked for again, and shown at the next onset.
- If the server dies, fallbacks are shown until it is back. The session is resumed from its log.
- If this program dies, call it again with --resume: it goes on after the last image that was shown,
  and the betas that are still missing are told.
- At its end the session is closed, since a server keeps only so many open. Its log stays.

Put your GLM in place of `Glm.betas`. Was run on a stand-in for PsychoPy's window, not in PsychoPy.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from session_files import Record, Shown, load, of_user  # beside this file

from brainfast.errors import BrainfastError
from brainfast.serve import Client

PASSING = ("timed_out", "busy", "stalled", "starting", "draining")
AGAIN_S = 0.25
REQUEST_S = 2.0
OPEN_S = 30.0
CLOSE_S = 10.0
FRAME_S = 1 / 60


@dataclass(frozen=True)
class Timing:
    """Seconds: from onset to onset, of an image, and before the onset to ask and to load."""

    onsets: float = 4.0
    image: float = 2.0
    ask: float = 1.0
    load: float = 0.3
    last_betas: float = 30.0


class Screen(Protocol):
    """What the loop needs of a window."""

    def now(self) -> float:
        """Seconds, on the clock of `frame`."""

    def prepare(self, image: Image.Image) -> None:
        """Load the next picture; may cost a frame, so it is done while the cross stands still."""

    def frame(self, picture: bool) -> float:
        """Draw the picture or the cross, wait for the screen, and tell when that was."""

    def stop(self) -> bool:
        """Whether somebody pressed escape."""


class PsychoPyScreen:
    """A PsychoPy window with a fixation cross and one picture."""

    def __init__(self) -> None:
        from psychopy import core, event, visual

        self.now, self._keys = core.getTime, event.getKeys
        self._window = visual.Window(fullscr=True)
        self._cross = visual.TextStim(self._window, text="+")
        self._picture = visual.ImageStim(self._window)

    def prepare(self, image: Image.Image) -> None:
        self._picture.image = image

    def frame(self, picture: bool) -> float:
        (self._picture if picture else self._cross).draw()
        return float(self._window.flip())

    def stop(self) -> bool:
        return bool(self._keys(["escape"]))


class Glm:
    """Stands for the lab's GLM: some seconds after an onset it has the betas, on its own thread."""

    def __init__(self, V: int, delay_s: float) -> None:
        self.ready: queue.SimpleQueue[tuple[int, NDArray[np.float32] | None]] = queue.SimpleQueue()
        self._V, self._delay_s = V, delay_s
        self._shown: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def shown(self, trial: int) -> None:
        """An image is on the screen; returns at once."""
        self._shown.put((time.monotonic() + self._delay_s, trial))

    def betas(self, trial: int) -> NDArray[np.float32] | None:  # [V]
        """z-scored betas of a trial, NaN where there are none; None to give the trial up."""
        return np.random.default_rng(trial).standard_normal(self._V, np.float32)

    def _work(self) -> None:
        while True:
            due, trial = self._shown.get()
            time.sleep(max(0.0, due - time.monotonic()))
            self.ready.put((trial, self.betas(trial)))


class Requests:
    """Requests one after another, each asked again until it is answered; `step` never waits.

    The client reconnects, and resumes the session where the server was started anew; it gives a
    request up after REQUEST_S.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._pending: Any = None
        self._not_before = 0.0

    def add(self, send: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """send: starts the request; done: gets the answer, None where it was refused for good."""
        self._waiting.append((send, done))

    def step(self) -> None:
        """Start the request whose turn it is, or look whether it is answered."""
        if not self._waiting or time.monotonic() < self._not_before:
            return
        send, done = self._waiting[0]
        answer = None
        try:
            if self._pending is None:
                self._pending = send()
            if not self._pending.ready():
                return
            answer = self._pending.result()
        except BrainfastError as error:
            complain(error)
            if getattr(error, "code", "") in PASSING:
                self._pending, self._not_before = None, time.monotonic() + AGAIN_S
                return
        self._pending = None
        self._waiting.popleft()
        done(answer)


def complain(error: object) -> None:
    print(f"psychopy_session: {error}", file=sys.stderr)


class Loop:
    """The experiment: asks, loads, shows, tells; nothing in it waits but `screen.frame`."""

    def __init__(
        self,
        screen: Screen,
        session: Any,
        requests: Requests,
        glm: Glm,
        record: Record,
        pictures: Path,
        fallback: Image.Image,
        timing: Timing,
        markers: Any = None,
    ) -> None:
        self._screen, self._session, self._requests = screen, session, requests
        self._glm, self._record, self._markers = glm, record, markers
        self._pictures, self._fallback, self._timing = pictures, fallback, timing
        self._next = max(record.trials, default=-1) + 1  # number of the choice that is wanted
        self._asked = False
        self._choice: Any = None
        self._picture: Future[Image.Image] | None = None
        self._loader = ThreadPoolExecutor(1)
        self._loader.submit(int).result()  # starts its thread, which would cost a frame later
        self.unmeasured: set[int] = set()

    def measure(self, trial: int) -> None:
        """Wait for the betas of a trial that was shown, and tell them when they come."""
        self.unmeasured.add(trial)
        self._glm.shown(trial)

    def play(self, trials: int) -> None:
        """Show so many images, then wait for the last betas; escape ends both."""
        first = self._screen.frame(False) + self._timing.onsets
        for number in range(trials):
            self._trial(first + number * self._timing.onsets)
            if self._screen.stop():
                return
        end = self._screen.now() + self._timing.last_betas
        while self.unmeasured and self._screen.now() < end and not self._screen.stop():
            self._look()
            self._screen.frame(False)

    def _trial(self, onset: float) -> None:
        self._frames(onset - self._timing.ask)
        if self._choice is None and not self._asked:
            self._asked, trial = True, self._next
            self._requests.add(lambda: self._session.ask_next(trial), self._chosen)
        self._frames(onset - self._timing.load)
        trial, image = self._prepare()
        self._frames(onset)
        moment = self._screen.frame(True)
        self._record.add(Shown(trial, image, moment))
        if self._markers:
            self._markers.onset(trial, image)
        if trial is not None:
            self.measure(trial)
        self._frames(moment + self._timing.image, picture=True)

    def _frames(self, until: float, picture: bool = False) -> None:
        """Draw all frames before the one at a moment, and look after all else meanwhile."""
        while self._screen.now() < until - 1.5 * FRAME_S:
            self._look()
            self._screen.frame(picture)

    def _look(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._tell(*self._glm.ready.get_nowait())
        self._requests.step()

    def _tell(self, trial: int, betas: NDArray[np.float32] | None) -> None:
        def send() -> Any:
            if betas is None:
                return self._session.skip(trial)
            return self._session.tell(trial, betas)

        self._requests.add(send, lambda _: self.unmeasured.discard(trial))

    def _chosen(self, choice: Any) -> None:
        self._asked, self._choice = False, choice
        if choice is not None:
            self._picture = self._loader.submit(load, self._pictures / choice.image)
            if self._markers:
                self._markers.choice(choice)

    def _prepare(self) -> tuple[int | None, str]:
        """Give the screen its next picture: trial and image, or None and the fallback."""
        image = None
        if self._choice is not None and self._picture is not None and self._picture.done():
            choice, self._choice, self._next = self._choice, None, self._choice.trial + 1
            try:
                image = self._picture.result()
            except OSError as error:  # a file that is missing or broken is never measured
                complain(error)
                self._tell(choice.trial, None)
        self._screen.prepare(image or self._fallback)
        return (choice.trial, choice.image) if image else (None, "fallback")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="tcp://127.0.0.1:5555", help="as serve's --zmq")
    parser.add_argument("--token-file", type=Path, help="as serve's")
    parser.add_argument("--session", required=True, help="its name, one a run")
    parser.add_argument("--objective", default="FFA - PPA")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the candidates")
    parser.add_argument(
        "--fallback", type=Path, required=True, help="shown where no choice is there"
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--delay", type=float, default=8.0, help="of the pretended GLM, seconds")
    parser.add_argument("--resume", action="store_true", help="go on after a crash")
    parser.add_argument("--lsl", action="store_true", help="send markers to Lab Streaming Layer")
    return parser.parse_args()


@contextmanager
def opened(client: Client, options: argparse.Namespace) -> Iterator[Any]:
    """The session of a run, which is closed however the run ends."""
    session = client.session(
        options.session,
        None if options.resume else options.objective,
        resume=options.resume,
        timeout_s=OPEN_S,
    ).result()
    try:
        yield session
    finally:
        try:
            session.close(timeout_s=CLOSE_S).result()
        except BrainfastError as error:  # the run is in the log and in the record all the same
            complain(f"session {options.session} may still be open at the server: {error}")


def run(options: argparse.Namespace, make_screen: Callable[[], Screen], timing: Timing) -> Record:
    """Open the session, which may take seconds, then the window, and play."""
    if not options.pictures.is_dir():
        raise BrainfastError("--pictures", expected="a folder", got=str(options.pictures))
    fallback = of_user("--fallback", "a picture", lambda: load(options.fallback))
    token = None
    if options.token_file:
        token = of_user("--token-file", "a file with a token", options.token_file.read_text).strip()
    record = Record(Path(f"{options.session}.csv"), options.resume)
    if record.torn:
        complain(f"{options.session}.csv: its last line was torn and is dropped: {record.torn!r}")
    markers = markers_of(options.session) if options.lsl else None
    with Client(options.address, token=token, timeout_s=REQUEST_S) as client:
        about = client.about(timeout_s=OPEN_S).result()
        with opened(client, options) as session:
            record.begin()
            loop = Loop(
                make_screen(),
                session,
                Requests(),
                Glm(max(about.vertices.values()), options.delay),
                record,
                options.pictures,
                fallback,
                timing,
                markers,
            )
            for waiting in session.state.outstanding:
                if waiting.trial in record.trials:
                    loop.measure(waiting.trial)
            loop.play(options.trials)
    if loop.unmeasured:
        complain(
            f"no betas were told for {sorted(loop.unmeasured)}: --resume --trials 0 waits more"
        )
    return record


def markers_of(session: str) -> Any:
    from lsl_markers import Markers  # beside this file; needs pylsl

    return Markers(session)


def main() -> None:
    options = arguments()
    try:
        if find_spec("psychopy") is None:
            raise BrainfastError(
                "psychopy", expected="PsychoPy", got="none", remedy="pip install psychopy"
            )
        run(options, PsychoPyScreen, Timing())
    except BrainfastError as error:
        complain(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
