"""The live page on a simulated experiment: a served session, one trial every few seconds.

    brainfast demo --out brainfast-demo
    python examples/live_page.py --demo brainfast-demo

Open the address that it prints. The subject is the demo's, which was made up: it answers as the
model predicts, with errors of the model's and with noise. With `--picture FILE` the trials follow
each other fast, and the page's picture is written; playwright and Chromium are needed for that.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.loop.folding import as_candidates, folded, sole
from brainfast.loop.subject import SimulatedSubject, World, groups_of
from brainfast.pool import Pool
from brainfast.serve import OpenSession, Service
from brainfast.serve.page import page_router

OBJECTIVE = "FFA - PPA"
SESSION = "run-1"
CANDIDATES = 160
TRIALS = 40
BETAS_LATER = 2  # trials until a response has been measured
LOST = 17  # a trial that is given up


def prepare(demo: Path) -> tuple[Pool, Path]:
    """A pool of some of the demo's photographs, and their folder."""
    engine = Engine.load(demo / "model")
    images = demo / "subj01" / "training_split" / "training_images"
    if (demo / "pool").exists():
        return Pool.open(demo / "pool", engine), images
    chosen = sorted(images.iterdir())[:CANDIDATES]
    return Pool.build(engine, chosen, path=demo / "pool", progress=True), images


def simulated(pool: Pool) -> SimulatedSubject:
    """A subject about whom the model is right, but for some of it."""
    candidates = as_candidates(pool)
    goal = sole(folded(OBJECTIVE, candidates, pool.engine))
    predicted = pool.response(pool.names).values
    groups = groups_of(pool.engine.space)
    return SimulatedSubject(World(candidates, goal, lambda rows: predicted[rows], groups))


async def experiment(
    service: Service, subject: SimulatedSubject, images: Path, interval_s: float
) -> None:
    """Choose, show, and tell what was measured some trials later."""
    random = np.random.default_rng(0)
    await service.open_session(SESSION, OpenSession(objective=OBJECTIVE, strategy="ucb"))
    names = service.pool.names
    shown: list[str] = []
    for trial in range(TRIALS):
        shown.append((await service.next(SESSION, trial)).image)
        await service.predict([(images / random.choice(names)).read_bytes()])
        done = trial - BETAS_LATER
        if done == LOST:
            await service.skip(SESSION, done)
        elif done >= 0:
            betas = subject.measure(names.index(shown[done]), random)
            await service.tell(SESSION, done, betas)
        await asyncio.sleep(interval_s)


async def take_picture(address: str, path: Path) -> None:
    """What the page looks like in a dark room."""
    from playwright.async_api import async_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as player:
        browser = await player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        size = {"width": 1280, "height": 720}
        page = await browser.new_page(viewport=size, color_scheme="dark")
        await page.goto(address)
        await page.wait_for_selector("#picture:not([hidden])")
        await page.wait_for_selector("#cortex[data-image]")
        await page.wait_for_timeout(2000)  # the small pictures
        taken = Image.open(io.BytesIO(await page.screenshot()))
        await browser.close()
    palette = taken.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    small = taken.convert("RGB").quantize(256, palette=palette)  # dithered: 200 kB, not 500
    path.parent.mkdir(parents=True, exist_ok=True)
    small.save(path, optimize=True)


async def play(
    service: Service,
    subject: SimulatedSubject,
    images: Path,
    interval_s: float,
    address: str,
    picture: Path | None,
) -> None:
    """The experiment, and then its picture; without one the page stays."""
    await experiment(service, subject, images, interval_s)
    if picture is None:
        await asyncio.Event().wait()
    else:
        await take_picture(address, picture)


async def serve(demo: Path, interval_s: float, picture: Path | None) -> None:
    """The experiment, and its page until it is interrupted."""
    pool, images = prepare(demo)
    logs = demo / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    service = Service(pool.engine, name="simulated subject", pool=pool, logs=logs)
    app = FastAPI()
    app.include_router(page_router(service, images))
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.1)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    print(address, flush=True)
    await service.start()
    playing = asyncio.create_task(
        play(service, simulated(pool), images, interval_s, address, picture)
    )
    try:
        ended, _ = await asyncio.wait((serving, playing), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        playing.cancel()
        server.should_exit = True
        await service.drain()
        await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, required=True, help="what `brainfast demo` wrote")
    parser.add_argument("--interval", type=float, default=4.0, help="seconds between trials")
    parser.add_argument("--picture", type=Path, help="write a picture of the page and end")
    given = parser.parse_args()
    interval_s = 0.5 if given.picture else given.interval
    if given.picture and find_spec("playwright") is None:
        parser.exit(2, "live_page: --picture needs playwright: pip install playwright\n")
    try:
        asyncio.run(serve(given.demo, interval_s, given.picture))
    except (BrainfastError, OSError) as error:
        parser.exit(2, f"live_page: {error}\n")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
