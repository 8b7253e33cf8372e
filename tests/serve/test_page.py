from __future__ import annotations

import asyncio
import contextlib
import copy
import gzip
import hashlib
import io
import json
import threading

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from brainfast.data.simulated_cortex import visual_cortex
from brainfast.errors import BrainfastError
from brainfast.flat_mesh import data_boxes, flat_mesh, raster
from brainfast.maps import value_map
from brainfast.pool import Pool
from brainfast.serve import page as page_module
from brainfast.serve.flat_raster import (
    NO_TRIANGLE,
    colour_limit,
    colour_table,
    flat_sides,
)
from brainfast.serve.page import FILES, page_router
from brainfast.vertex_space import VertexSpace
from page_world import TellingService, make_pool, painted, unpack, write_images
from serve_world import Gate, group, happens, on_loop


def client(service, folder=None):
    app = FastAPI()
    app.include_router(page_router(service, folder))
    return open_client(app)


def open_client(app):
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1", timeout=60
    )


@pytest.fixture(scope="module")
def cortex():
    """A real flat map's raster, through JSON and bytes."""
    space = visual_cortex().space
    sides = flat_sides(space)
    about = json.loads(json.dumps({"sides": [side.about() for side in sides]}))
    return space, about, unpack(about, b"".join(side.pack() for side in sides))


def test_a_pixels_nearest_vertex_is_the_static_maps(cortex):
    space, _, arrays = cortex
    own = {"lh": space.lh, "rh": space.rh}
    for side, box in data_boxes(space).items():
        part = raster(side, box, 600)
        place = {vertex: column for column, vertex in enumerate(own[side])}
        first = space.lh.size if side == "rh" else 0
        known = np.isin(part.corners, own[side]).all(axis=1)
        rows, columns = (index[known] for index in np.nonzero(part.inside))
        at = part.shape[0] - 1 - rows, columns  # the page's first row is the top one
        nearest = part.weights[known].argmax(axis=1)
        vertices = part.corners[known][np.arange(known.sum()), nearest]
        here = arrays[side]
        triangle = here["triangle"][at]
        assert (triangle != NO_TRIANGLE).all()
        two = here["weights"][:, at[0], at[1]].T.astype(int)
        mine = np.column_stack([two, 255 - two.sum(axis=1)]).argmax(axis=1)
        found = here["corners"][triangle.astype(int), mine]
        expected = np.array([first + place[vertex] for vertex in vertices])
        clear = np.sort(part.weights[known], axis=1)
        clear = clear[:, 2] - clear[:, 1] > 0.02  # not a draw that rounding decides
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(found[clear], expected[clear])


def test_the_raster_paints_the_static_map(cortex):
    space, _, arrays = cortex
    values = np.random.default_rng(0).standard_normal(space.V)
    values[:200] = np.nan
    figure = value_map(values, space, limits=(-2.0, 2.0), height=3.0)
    for side, here in arrays.items():
        ax = next(ax for ax in figure.axes if ax.get_label() == f"{side} 0 0")
        static = np.asarray(ax.images[0].get_array())[::-1]
        shown = static[..., 3] > 0
        page = painted(here, values, colour_table(), 2.0) / 255
        off = np.abs(page - static[..., :3])[shown].max(axis=1)
        assert np.quantile(off, 0.999) < 0.03
        assert off.mean() < 0.005
        np.testing.assert_allclose(here["opacity"] / 255, static[..., 3], atol=0.003)


def test_regions_are_outlined_and_named(cortex):
    space, about, _ = cortex
    for side in about["sides"]:
        names = {label["name"] for label in side["labels"]}
        assert {"V1", "EBA", "FFA", "PPA"} <= names <= set(space.roi_names())
        own = {"lh": space.lh, "rh": space.rh}[side["side"]]
        eba = np.intersect1d(space.roi(f"{side['side']}.EBA"), np.arange(space.V))
        vertices = own[eba - (space.lh.size if side["side"] == "rh" else 0)]
        x0, x1, _, y1 = data_boxes(space)[side["side"]]
        centre = flat_mesh(side["side"]).points[vertices].mean(axis=0)
        scale = side["width"] / (x1 - x0)
        expected = [(centre[0] - x0) * scale, (y1 - centre[1]) * scale]
        at = next(label["at"][0] for label in side["labels"] if label["name"] == "EBA")
        assert np.linalg.norm(np.subtract(at, expected)) < 30
        assert len(side["outlines"]) >= len(names)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ([[0.2, -1.31]], 1.5),
        ([[2.0, 2.0]], 2.0),
        ([[0.013]], 0.015),
        ([[np.nan, 0.0], [np.nan, np.nan]], 1.0),
        ([[1.0], [1.4], [90.0]], 1.5),
        (np.zeros((0, 3)), 1.0),
    ],
)
def test_the_range_of_colours_is_round_and_fits_a_usual_image(values, limit):
    assert colour_limit(np.array(values, dtype=float)) == limit


def test_colours_are_the_static_maps():
    from matplotlib import colormaps

    expected = np.rint(255 * colormaps["RdBu_r"](np.arange(256))[:, :3])
    np.testing.assert_array_equal(colour_table(), expected)


@on_loop
async def test_values_are_the_pools_response_in_bytes(pool, images):
    async with client(TellingService(pool), images) as page:
        name = pool.names[3]
        reply = await page.get("/v1/flat/response", params={"image": name})
        assert reply.status_code == 200
        values = np.frombuffer(reply.content, "<f4")
        np.testing.assert_array_equal(values, pool.response(name).values[0])
        about = (await page.get("/v1/flat")).json()
        assert (about["kind"], about["V"], about["units"]) == ("flat", 30, "z")
        tops = np.percentile(np.abs(pool.response(pool.names).values), 99, axis=1)
        assert about["limit"] >= np.median(tops) > about["limit"] / 2
        raw = await page.get("/v1/flat/raster", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in raw.headers
        unpack(about, raw.content)
        async with page.stream("GET", "/v1/flat/raster") as zipped:
            body = b"".join([part async for part in zipped.aiter_raw()])
        assert gzip.decompress(body) == raw.content


@on_loop
async def test_the_map_is_zipped_on_its_own_thread_and_once(pool, monkeypatch):
    threads = []
    compress = gzip.compress

    def zipped(*arguments):
        threads.append(threading.current_thread().name)
        return compress(*arguments)

    monkeypatch.setattr(page_module.gzip, "compress", zipped)
    async with client(TellingService(pool)) as page:
        for _ in range(2):
            for path in ("/v1/flat", "/v1/flat/raster"):
                reply = await page.get(path)
                assert reply.headers["content-encoding"] == "gzip"
    assert [name.rpartition("_")[0] for name in threads] == ["brainfast-map"] * 2


@pytest.mark.parametrize("how", ["the service ends", "the application ends"])
@on_loop
async def test_a_map_that_is_still_being_made_holds_no_server_up(monkeypatch, how):
    gate = Gate()
    monkeypatch.setattr(page_module, "_make_map", lambda _: gate.wait())
    service = TellingService()
    app = FastAPI()
    app.include_router(page_router(service))
    try:
        async with open_client(app) as page, contextlib.AsyncExitStack() as ending:
            await ending.enter_async_context(app.router.lifespan_context(app))
            asking = [asyncio.create_task(page.get(path)) for path in ("/v1/flat",) * 2]
            await happens(gate.entered)
            if how == "the service ends":
                service.events.close()
            else:
                await ending.aclose()
            for reply in await asyncio.gather(*asking):
                assert (reply.status_code, reply.json()["code"]) == (503, "draining")
            assert (await page.get("/v1/flat")).status_code == 503
            await asyncio.get_running_loop().shutdown_default_executor()  # as asyncio.run does
    finally:
        gate.open()


@on_loop
async def test_a_map_that_cannot_be_made_is_an_error(monkeypatch):
    def fail(_):
        raise BrainfastError("mesh", expected="one", got="none")

    monkeypatch.setattr(page_module, "_make_map", fail)
    async with client(TellingService()) as page:
        reply = await page.get("/v1/flat")
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid")


@on_loop
async def test_vertices_on_no_mesh_are_means_of_regions(pool, images):
    bare = copy.copy(pool)
    bare.engine = copy.copy(pool.engine)
    space = pool.engine.space
    bare.engine.space = VertexSpace("custom", space.lh, space.rh, space.rois, "subj01")
    async with client(TellingService(bare), images) as page:
        about = (await page.get("/v1/flat")).json()
        assert about["kind"] == "bars"
        assert about["names"] == ["V1", "FFA", "PPA"]
        name = pool.names[2]
        reply = await page.get("/v1/flat/response", params={"image": name})
        response = pool.response(name)
        expected = [response.roi(region).mean() for region in about["names"]]
        np.testing.assert_allclose(np.frombuffer(reply.content, "<f4"), expected, rtol=1e-5)


@on_loop
async def test_a_pool_of_scores_shows_its_scores(images, tmp_path):
    pool = make_pool(tmp_path / "scores", images, project=["FFA", "FFA - PPA"])
    async with client(TellingService(pool)) as page:
        about = (await page.get("/v1/flat")).json()
        assert (about["kind"], about["names"]) == ("bars", ["FFA", "FFA - PPA"])
        name = pool.names[4]
        reply = await page.get("/v1/flat/response", params={"image": name})
        expected = [pool.score(objective)[4, 0] for objective in about["names"]]
        np.testing.assert_allclose(np.frombuffer(reply.content, "<f4"), expected, rtol=1e-5)


@on_loop
async def test_an_empty_pool_is_nothing_to_draw(images, tmp_path):
    pool = make_pool(tmp_path / "emptied", images)
    pool.remove(pool.names)
    async with client(TellingService(pool)) as page:
        reply = await page.get("/v1/flat")
        assert (reply.status_code, reply.json()["kind"]) == (200, "none")
        assert "empty" in reply.json()["note"]


@on_loop
async def test_the_page_tells_whose_responses_are_drawn(images, tmp_path):
    several = group()
    pool = Pool.build(several.of("a"), images, path=tmp_path / "shared")
    for subject in several.subjects:
        service = TellingService(pool.with_engine(several.of(subject)))
        async with client(service) as page:
            assert (await page.get("/v1/flat")).json()["subject"] == subject


@on_loop
async def test_without_a_pool_the_page_says_so():
    async with client(TellingService()) as page:
        about = (await page.get("/v1/flat")).json()
        assert about["kind"] == "none"
        assert "no pool" in about["note"]
        reply = await page.get("/v1/flat/response", params={"image": "x"})
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


@on_loop
async def test_a_picture_is_the_pools_image(pool, images):
    async with client(TellingService(pool), images) as page:
        for size, side in {"large": 32, "small": 32}.items():
            reply = await page.get("/v1/picture", params={"image": pool.names[5], "size": size})
            assert reply.headers["content-type"] == "image/jpeg"
            assert reply.headers["cache-control"] == "no-cache"  # another pool has such names too
            picture = Image.open(io.BytesIO(reply.content))
            assert max(picture.size) == side
            red, _, blue = picture.getpixel((16, 2))
            assert red > 230
            assert abs(blue - 200) < 20
        reply = await page.get("/v1/picture", params={"image": pool.names[5], "size": "huge"})
        assert reply.status_code == 400


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "set/../../secret.png",
        "/etc/passwd",
        "set\\..\\secret.png",
        "file:///etc/passwd",
        "set/image-00.png\0",
        "set",
        "",
        ".",
        "not-in-the-pool.png",
    ],
)
@on_loop
async def test_no_other_file_can_be_asked_for(pool, images, name):
    (images.parent / "secret.png").write_bytes((images / pool.names[0]).read_bytes())
    (images / "not-in-the-pool.png").write_bytes((images / pool.names[0]).read_bytes())
    async with client(TellingService(pool), images) as page:
        reply = await page.get("/v1/picture", params={"image": name})
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert str(images) not in reply.text


@on_loop
async def test_even_a_pools_own_name_may_not_lead_out_of_the_folder(pool, images):
    secret = images.parent / "other.png"
    secret.write_bytes((images / pool.names[0]).read_bytes())
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    bad = copy.copy(pool)
    change = {"names": ("../other.png", *pool.items.names[1:])}
    bad.items = pool.items.model_copy(update=change | {"digests": (digest,) * 6})
    async with client(TellingService(bad), images) as page:
        reply = await page.get("/v1/picture", params={"image": "../other.png"})
        assert reply.status_code == 404


@on_loop
async def test_a_file_of_other_bytes_is_not_shown_under_the_name(pool, images, tmp_path):
    write_images(tmp_path)
    (tmp_path / pool.names[1]).write_bytes((images / pool.names[2]).read_bytes())
    (tmp_path / pool.names[2]).unlink()
    async with client(TellingService(pool), tmp_path) as page:
        reply = await page.get("/v1/picture", params={"image": pool.names[1]})
        assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
        reply = await page.get("/v1/picture", params={"image": pool.names[2]})
        assert reply.status_code == 404
    async with client(TellingService(pool)) as page:
        reply = await page.get("/v1/picture", params={"image": pool.names[1]})
        assert "--images" in reply.json()["error"]


@on_loop
async def test_the_pages_own_files_are_strict_and_no_others_are_served(pool):
    async with client(TellingService(pool)) as page:
        for path in ("/", *(f"/page/{name}" for name in FILES)):
            reply = await page.get(path)
            assert reply.status_code == 200
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "https://" not in reply.text
            assert " style=" not in reply.text
            assert "innerHTML" not in reply.text
        for path in ("/page/page.py", "/page/..%2fpage.py", "/page/none", "/page/"):
            assert (await page.get(path)).status_code == 404
