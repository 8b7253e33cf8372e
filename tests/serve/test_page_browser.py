"""The page in a real browser, on a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import shutil
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from brainfast.flat_mesh import data_boxes, flat_mesh
from brainfast.map_colours import Scale
from brainfast.pool import Pool
from brainfast.serve.page import page_router
from brainfast.serve.service import Service
from page_world import TellingService, make_pool, painted, unpack
from serve_world import asked, betas, group

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the page")
HOSTILE = "<img src=x onerror=console.error('ran')>.png"


class Server:
    """The page's routes under uvicorn, on a thread with a loop of its own."""

    def __init__(self, service, images=None, port=0):
        app = FastAPI()
        app.include_router(page_router(service, images))
        config = uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
        self.service, self._server = service, uvicorn.Server(config)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def _serve(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._server.serve())
        self.loop.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def call(self, function, *arguments, **options):
        async def call():
            return function(*arguments, **options)

        return self.run(call())

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


def wait_until(ready, seconds=60):
    for _ in range(20 * seconds):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def shows(page, selector, text):
    """Wait until an element shows a text."""
    playwright.expect(page.locator(selector)).to_have_text(text, timeout=30_000)


SERVER_ENDED = "net::ERR_CONNECTION_REFUSED"  # a page outlives its server by a moment


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Opens pages that must say nothing on the console but what a test expects."""
    contexts = []

    def open_page(url, *, expected=None, width=1280, height=720, scheme="light"):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        page = context.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        contexts.append((context, said, expected))
        page.set_default_timeout(30_000)
        page.goto(url)
        return page

    yield open_page
    for context, said, expected in contexts:
        context.close()
        unasked = "|".join(filter(None, (SERVER_ENDED, expected)))
        assert [line for line in said if not re.search(unasked, line)] == []


def expected_colour(pool, image, side, limit):
    """Where a vertex of a hemisphere lies on its canvas, as shares, and its colour, anew."""
    space, values = pool.engine.space, pool.response(image).values[0]
    own, first = {"lh": (space.lh, 0), "rh": (space.rh, space.lh.size)}[side]
    x0, x1, y0, y1 = data_boxes(space)[side]
    flat = flat_mesh(side)
    column = next(n for n, vertex in enumerate(own) if flat.drawn[vertex])
    x, y = flat.points[own[column]]
    colour = 255 * Scale.fixed("RdBu_r", -limit, limit).rgb(values[[first + column]])[0]
    return (x - x0) / (x1 - x0), (y1 - y) / (y1 - y0), colour


PIXEL = """([side, x, y]) => {
    const canvas = document.getElementById(`canvas-${side}`);
    const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
    return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
}"""
CANVAS = "(side) => document.getElementById(`canvas-${side}`).toDataURL()"
FITS = "document.documentElement.scrollWidth <= innerWidth"


def test_the_page_follows_a_session(pool, images, tmp_path, open_page):
    service = Service(pool.engine, name="toy model", pool=pool, logs=tmp_path)
    server = Server(service, images)
    try:
        server.run(service.start())
        page = open_page(server.url)
        page.get_by_text("No image has been chosen yet.").wait_for()
        server.run(service.open_session("run-1", asked()))
        server.run(service.next("run-1", 0))
        server.run(service.tell("run-1", 0, betas(0)))
        choice = server.run(service.next("run-1", 1))
        page.wait_for_selector("#picture:not([hidden])")
        shows(page, "#trial", "1")
        assert page.locator("#image").text_content() == choice.image
        assert page.evaluate("document.getElementById('picture').naturalWidth") == 32
        score = page.locator("#score").text_content().replace("\u2212", "-")
        assert float(score) == pytest.approx(choice.score, abs=0.0051)
        shown = page.locator("#uncertainty").text_content().removeprefix("\u00b1 ")
        assert float(shown) == pytest.approx(choice.uncertainty, abs=0.0051)
        assert page.locator("#objective").text_content() == "FFA - PPA"
        assert page.locator("#model").text_content() == "toy model"
        assert page.locator("#state-text").text_content() == "ready"
        assert page.locator("#strip li").count() == 2
        assert page.locator("#strip button").nth(1).get_attribute("data-status") == "told"

        dot = page.locator("#course .measured title").text_content().replace("\u2212", "-")
        measured = [betas(0)[pool.engine.space.roi(name)].mean() for name in ("FFA", "PPA")]
        assert dot.startswith("trial 0: measured ")
        assert float(dot.split()[-1]) == pytest.approx(measured[0] - measured[1], abs=0.0051)

        page.wait_for_selector(f'#cortex[data-image="{choice.image}"]')
        about = httpx.get(f"{server.url}v1/flat").json()
        arrays = unpack(about, httpx.get(f"{server.url}v1/flat/raster").content)
        values = pool.response(choice.image).values[0]
        colours = np.array(about["colours"]).reshape(-1, 3)
        for side in ("lh", "rh"):
            x, y, colour = expected_colour(pool, choice.image, side, about["limit"])
            *found, opacity = page.evaluate(PIXEL, [side, x, y])
            assert opacity > 0
            np.testing.assert_allclose(found, colour, atol=4)
            data = page.evaluate(CANVAS, side).partition(",")[2]
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            opaque = picture[..., 3] == 255
            off = picture[..., :3].astype(int) - painted(
                arrays[side], values, colours, about["limit"]
            )
            assert opaque.mean() > 0.2
            assert (np.abs(off[opaque]).max(axis=1) > 0).mean() < 0.001

        shows(page, "#next-count", "n = 2, 0 late")
        titles = page.locator("#next title").all_text_contents()
        assert sum(int(title.split()[0]) for title in titles) == 2
        assert page.locator("#next .deadline").count() == 1
        server.run(service.predict([np.zeros((8, 8, 3), np.uint8)]))
        page.get_by_text("n = 1", exact=True).wait_for()
        for width, height in ((1280, 720), (1920, 1080), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate(FITS), width
    finally:
        server.run(service.drain())
        server.stop()


def test_what_is_not_as_it_should_be_is_said_in_words_and_shapes(pool, images, open_page):
    service = TellingService(pool)
    server = Server(service, images)
    try:
        server.call(service.open_session, "run-1")
        none = {"score": None, "uncertainty": None}
        server.call(service.choose, "run-1", 0, pool.names[0], source="fallback", late=True, **none)
        page = open_page(server.url, expected="404|ERR_")
        flag = page.locator("#flag")
        page.wait_for_selector('#flag[data-late="true"]')
        assert flag.text_content().startswith("\u25b2late, fallback")
        assert page.locator("#score").text_content() == "\u2013"
        assert "late" in page.locator("#strip button").first.get_attribute("aria-label")
        server.call(service.choose, "run-1", 1, pool.names[1], late=True, latency_ms=31.0)
        shows(page, "#trial", "1")
        assert "late (31 ms), fresh" in flag.text_content()
        page.get_by_text("n = 2, \u25b2 2 late").wait_for()
        assert page.locator("#next .over").count() == 1
        server.call(service.choose, "run-1", 2, HOSTILE)
        shows(page, "#trial", "2")
        assert flag.text_content() == "\u25cffresh: all data used"
        assert page.locator("#image").text_content() == HOSTILE
        shows(page, "#placeholder", re.compile("No picture"))
        assert page.locator("img").count() == page.locator("#picture, #strip img").count() == 4

        server.call(service.become, "stalled")
        page.get_by_text("New images are refused").wait_for()
        server.call(service.become, "ready")
        page.wait_for_selector("#banner", state="hidden")

        page.locator("#strip button").first.focus()
        page.keyboard.press("ArrowRight")
        page.get_by_text("Looking back").wait_for()
        assert page.locator("#trial").text_content() == "1"
        assert page.locator("#strip [aria-pressed=true]").get_attribute("data-trial") == "1"
        page.wait_for_selector(f'#cortex[data-image="{pool.names[1]}"]')
        page.keyboard.press("Escape")
        page.get_by_text("Image chosen", exact=True).wait_for()

        server.call(service.open_session, "run-2")
        server.call(service.choose, "run-2", 0, pool.names[3])
        playwright.expect(page.locator("#session")).to_have_value("run-2", timeout=30_000)
        page.locator("#session").select_option("run-1")
        server.call(service.choose, "run-2", 1, pool.names[4])
        shows(page, "#trial", "2")

        server.call(service.become, "closed")
        page.get_by_text("The server ended at").wait_for()
    finally:
        server.stop()


def test_no_response_stays_under_another_picture(pool, images, open_page):
    service = TellingService(pool)
    server = Server(service, images)
    try:
        page = open_page(server.url, expected="ERR_|Failed")
        page.wait_for_selector("#canvas-lh", state="attached")
        bare = page.evaluate(CANVAS, "lh")
        server.call(service.choose, "run-1", 0, pool.names[0])
        page.wait_for_selector(f'#cortex[data-image="{pool.names[0]}"]')
        assert page.evaluate(CANVAS, "lh") != bare
        held = []
        page.route("**/v1/flat/response?*", lambda route: held.append(route))
        server.call(service.choose, "run-1", 1, pool.names[1])
        page.wait_for_selector("#cortex:not([data-image])")
        assert page.evaluate(CANVAS, "lh") == bare
        shows(page, "#trial", "1")
        wait_until(lambda: page.evaluate("1") and held)
        held[0].abort()
        page.get_by_text("No response").wait_for()
        page.unroute_all()
        server.call(service.choose, "run-1", 2, pool.names[2])
        page.wait_for_selector(f'#cortex[data-image="{pool.names[2]}"]')
        shows(page, "#map-note", "")
    finally:
        server.call(service.become, "closed")
        server.stop()


def test_a_name_that_is_used_again_shows_the_new_session(pool, images, open_page):
    service = TellingService(pool)
    server = Server(service, images)
    try:
        page = open_page(server.url, expected="ERR_")
        page.wait_for_selector("#canvas-lh", state="attached")
        for trial in range(3):
            server.call(service.choose, "run-1", trial, pool.names[trial])
        shows(page, "#trial", "2")
        page.locator("#strip button").nth(1).click()
        shows(page, "#trial", "1")
        server.call(service.choose, "run-1", 0, pool.names[4])
        shows(page, "#image", pool.names[4])
        assert page.locator("#chosen-title").text_content() == "Image chosen"
        assert page.locator("#strip li").count() == 1
        shows(page, "#next-count", "n = 4")
        assert page.locator("#next-numbers").text_content() == "p50 3 ms"  # too few for a p99
    finally:
        server.call(service.become, "closed")
        server.stop()


def test_the_page_finds_a_server_that_was_restarted(pool, images, open_page):
    first = Server(TellingService(pool), images)
    first.call(first.service.open_session, "run-1")
    first.call(first.service.choose, "run-1", 0, pool.names[0])
    page = open_page(first.url, expected="ERR_|Failed to load|Failed to fetch")
    shows(page, "#trial", "0")
    first.stop()
    page.get_by_text("Connection lost at").wait_for()
    assert page.locator("#trial").text_content() == "0"  # the last that is known
    second = Server(TellingService(pool), images, first.port)
    try:
        second.call(second.service.open_session, "run-1")
        second.call(second.service.choose, "run-1", 7, pool.names[5])
        shows(page, "#trial", "7")
        page.wait_for_selector("#banner", state="hidden")
        page.wait_for_selector(f'#cortex[data-image="{pool.names[5]}"]')
        assert page.locator("#state-text").text_content() == "ready"
    finally:
        second.call(second.service.become, "closed")
        second.stop()


def test_of_several_subjects_only_the_maps_own_is_drawn(images, tmp_path, open_page):
    several = group()
    pool = Pool.build(several.of("b"), images, path=tmp_path / "pool")
    service = Service(several, name="toy", pool=pool, logs=tmp_path / "logs")
    server = Server(service, images)
    try:
        server.run(service.start())
        page = open_page(server.url)
        page.wait_for_selector("#canvas-lh", state="attached")
        assert page.locator("#units").text_content().startswith("predicted response of b (z)")
        bare = page.evaluate(CANVAS, "lh")
        for name in ("b-1", "a-1", "b-2"):
            subject = name[0]
            server.run(service.open_session(name, asked(subject=subject)))
            image = server.run(service.next(name, 0)).image
            if subject == "b":
                page.wait_for_selector(f'#cortex[data-image="{image}"]')
                shows(page, "#map-note", "")
            else:
                page.get_by_text("The map is of b, and this session of another").wait_for()
                page.wait_for_selector("#cortex:not([data-image])")
            assert (page.evaluate(CANVAS, "lh") == bare) == (subject == "a")
    finally:
        server.run(service.drain())
        server.stop()


def test_bars_stand_for_regions_where_there_is_no_flat_cortex(images, tmp_path, open_page):
    pool = make_pool(tmp_path / "scores", images, project=["FFA", "PPA"])
    service = TellingService(pool)
    server = Server(service, images)
    try:
        server.call(service.choose, "run-1", 0, pool.names[2])
        page = open_page(server.url, scheme="dark")
        page.wait_for_selector("#bars i")
        rows = [
            text.replace("\u2212", "-") for text in page.locator("#bars > div").all_inner_texts()
        ]
        found = {row.split()[0]: float(row.split()[-1]) for row in rows}
        expected = {name: float(pool.score(name)[2, 0]) for name in ("FFA", "PPA")}
        assert found == pytest.approx(expected, abs=0.0051)
    finally:
        server.call(service.become, "closed")
        server.stop()
