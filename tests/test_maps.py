from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from brainfast.errors import BrainfastError
from brainfast.flat_mesh import N, data_boxes, flat_mesh, on_mesh, raster
from brainfast.map_colours import DIMMEST, Scale, angle_rgb, layer_colours, shade
from brainfast.maps import Selectors, layer_map, selector_panel, space_map, value_map
from brainfast.vertex_space import VertexSpace


def patch(side, centre=110.0):
    """Vertices of the flat mesh behind x = 110 mm, where early visual cortex lies."""
    flat = flat_mesh(side)
    x = flat.points[:, 0] * (1 if side == "lh" else -1)
    return np.flatnonzero(flat.drawn & (x > centre) & (np.abs(flat.points[:, 1]) < 40))


@pytest.fixture(scope="module")
def space():
    lh, rh = patch("lh"), patch("rh")
    y = np.concatenate([flat_mesh("lh").points[lh, 1], flat_mesh("rh").points[rh, 1]])
    return VertexSpace("fsaverage5", lh, rh, {"V1v": y < -10, "EBA": y > 10})


def pixel_at(figure, side, vertex, cell="0 0"):
    """The colour of the figure where a vertex of one hemisphere is drawn, 0 to 1."""
    figure.canvas.draw()
    ax = next(ax for ax in figure.axes if ax.get_label() == f"{side} {cell}")
    x, y = ax.transData.transform(flat_mesh(side).points[vertex])
    picture = np.asarray(figure.canvas.buffer_rgba())
    return picture[picture.shape[0] - 1 - int(y), int(x), :3] / 255


def middle(vertices, side):
    """The vertex of a patch that lies deepest inside it."""
    points = flat_mesh(side).points[vertices]
    return int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())


def test_a_vertex_has_its_layers_colour(space):
    left, right = middle(space.lh, "lh"), middle(space.rh, "rh")
    layer = np.zeros((space.V, 5))
    layer[space.lh_slice, 0] = 1
    layer[space.rh_slice, 4] = 1
    figure = layer_map(layer, space, rois=[], height=4.0)
    colours = layer_colours(5)
    assert np.allclose(pixel_at(figure, "lh", space.lh[left]), colours[0], atol=0.01)
    assert np.allclose(pixel_at(figure, "rh", space.rh[right]), colours[4], atol=0.01)


def test_no_confidence_is_dark(space):
    figure = layer_map(np.full((space.V, 5), 0.2), space, rois=[], height=4.0)
    colour = pixel_at(figure, "lh", space.lh[middle(space.lh, "lh")])
    assert np.allclose(colour, DIMMEST * layer_colours(5)[0], atol=0.01)


def test_shade_runs_from_dark_to_full():
    colours = layer_colours(3)
    np.testing.assert_allclose(shade(colours, np.ones(3)), colours, rtol=1e-6)
    assert (shade(colours, np.zeros(3)).max(axis=1) < 0.2).all()


def test_layers_up_to_40_differ():
    for count in (2, 12, 40):
        colours = layer_colours(count)
        apart = np.linalg.norm(colours[:, None] - colours[None], axis=2)
        assert apart[~np.eye(count, dtype=bool)].min() > 1 / (2 * count)
        assert (colours.max(axis=1) > 0.75).all()  # dark is left to confidence


def test_values_take_the_colour_maps_colours_and_nan_the_cortex(space):
    values = np.ones(space.V)
    values[space.rh_slice] = np.nan
    before = pyplot.get_fignums()
    figure = value_map(values, space, limits=(0, 1), cmap="viridis", rois=[], height=4.0)
    assert pyplot.get_fignums() == before  # no state that all figures share
    left = pixel_at(figure, "lh", space.lh[middle(space.lh, "lh")])
    assert np.allclose(left, Scale.fixed("viridis", 0, 1).rgb(np.float32(1.0)), atol=0.01)
    grey = pixel_at(figure, "rh", space.rh[middle(space.rh, "rh")])
    assert np.ptp(grey) < 0.01
    assert grey.min() > 0.7


def test_interpolation_keeps_vertices_and_is_linear_between():
    flat = flat_mesh("lh")
    part = raster("lh", (110.0, 140.0, -20.0, 20.0), 300)
    x, y = part.centres()
    got = part.picture(part.interpolate(2 * flat.points[:, 0] - flat.points[:, 1]))
    want = 2 * x[None] - y[:, None]
    inside = np.isfinite(got)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(got[inside], want[inside], atol=1e-3)


def test_the_flat_mesh_has_no_triangle_over_a_cut():
    for side in ("lh", "rh"):
        flat = flat_mesh(side)
        corners = flat.points[flat.triangles]
        assert np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max() < 15
        assert 9000 < flat.drawn.sum() < N


def test_hemispheres_mirror_each_other_in_one_scale(space):
    boxes = data_boxes(space)
    assert boxes["lh"][:2] == (-boxes["rh"][1], -boxes["rh"][0])
    assert boxes["lh"][2:] == boxes["rh"][2:]
    only_left = space.take(np.arange(space.lh.size))
    assert list(data_boxes(only_left)) == ["lh"]


def test_fsaverage_is_shown_at_the_vertices_that_fsaverage5_shares(space):
    extra = np.array([20000, 163841])
    large = VertexSpace("fsaverage", np.append(space.lh, extra), np.append(space.rh, extra))
    values = np.arange(large.V, dtype=float)
    full = on_mesh(values, large)
    np.testing.assert_array_equal(full["lh"][space.lh], np.arange(space.lh.size))
    want = space.lh.size + 2 + np.arange(space.rh.size)
    np.testing.assert_array_equal(full["rh"][space.rh], want)
    assert np.isfinite(full["lh"]).sum() == space.lh.size
    value_map(values, large, height=3.0)


def test_a_sparse_sample_stands_for_its_surroundings(space):
    few = space.take(np.arange(0, space.V, 9))
    values = np.arange(few.V, dtype=float)
    full = on_mesh(values, few)["lh"]
    np.testing.assert_array_equal(full[few.lh], values[few.lh_slice])
    points = flat_mesh("lh").points
    filled = np.setdiff1d(np.flatnonzero(np.isfinite(full)), few.lh)
    assert filled.size > 3 * few.lh.size
    apart = np.linalg.norm(points[filled][:, None] - points[few.lh][None], axis=2)
    np.testing.assert_array_equal(full[filled], values[apart.argmin(axis=1)])


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_files_are_whole_and_varied(tmp_path, space, suffix):
    layer = np.random.default_rng(0).dirichlet(np.ones(4), space.V)
    path = tmp_path / f"map{suffix}"
    layer_map(layer, space, path, layers=[0, 2, 4, 7], title="t")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".png":
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[0] > 800
        assert len(np.unique(picture.astype(int) @ [1, 256, 65536])) > 500


def test_regions_are_outlined_and_named(space):
    figure = layer_map(np.ones((space.V, 1)), space)
    for ax in figure.axes[:2]:
        names = sorted(text.get_text() for text in ax.texts if "anterior" not in text.get_text())
        assert set(names) == {"EBA", "V1"}
    renderer = figure.canvas.get_renderer()
    for ax in figure.axes[:2]:
        boxes = [text.get_window_extent(renderer) for text in ax.texts]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_retinotopy_panels(tmp_path, space):
    points = np.random.default_rng(0).uniform(-1, 1, (space.V, 2))
    points[:, 1] = -np.abs(points[:, 1])  # the upper half of the image
    layer = np.random.default_rng(0).dirichlet(np.ones(4), space.V)
    figure = space_map(points, space, 8.4, tmp_path / "space.png", layer=layer)
    ax = next(ax for ax in figure.axes if ax.get_label() == "lh samples")
    drawn = np.asarray(ax.collections[0].get_offsets())
    assert drawn[:, 1].min() >= 0  # y grows downwards in the image, upwards in the figure
    np.testing.assert_allclose(
        np.sort(drawn[:, 0]), np.sort(points[space.lh_slice, 0] * 4.2), rtol=1e-6
    )


def test_opposite_angles_have_other_colours():
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    colours = angle_rgb(np.cos(turn), np.sin(turn))
    assert np.linalg.norm(colours - np.roll(colours, 6, axis=0), axis=1).min() > 0.4


def test_planted_beside_recovered(tmp_path, space):
    random = np.random.default_rng(0)
    layer = np.eye(3)[np.zeros(space.V, dtype=int)]
    planted = Selectors(random.uniform(-1, 1, (space.V, 2)), layer, np.ones(space.V))
    other = planted._replace(layer=layer[:, ::-1])
    rows = {"planted": planted, "recovered": other}
    figure = selector_panel(
        rows, space, 8.4, tmp_path / "p.png", rois=[], notes={"recovered": ["r = 1"] * 4}
    )
    vertex = space.lh[middle(space.lh, "lh")]
    assert np.allclose(pixel_at(figure, "lh", vertex, "0 0"), layer_colours(3)[0], atol=0.01)
    assert np.allclose(pixel_at(figure, "lh", vertex, "1 0"), layer_colours(3)[2], atol=0.01)
    yellow = Scale.fixed("cividis", 0, 1).rgb(np.float32(1.0))
    assert np.allclose(pixel_at(figure, "lh", vertex, "0 3"), yellow, atol=0.01)
    assert [text.get_text() for text in figure.texts].count("r = 1") == 4


def test_scale_says_what_it_cuts():
    values = np.random.default_rng(0).normal(size=1000)
    scale = Scale.choose(values, None, None)
    assert scale.norm.vmin == -scale.norm.vmax
    assert scale.extend in ("min", "max", "both")
    assert "percentile" in scale.note
    assert Scale.choose(np.abs(values), None, (0, 10)).extend == "neither"
    assert Scale.choose(np.full(5, 0.3), None, None).norm.vmin < 0.3  # constant


def test_bad_input(tmp_path, space):
    layer = np.ones((space.V, 1))
    custom = VertexSpace("custom", np.arange(4), np.arange(3))
    with pytest.raises(BrainfastError, match="resample"):
        layer_map(np.ones((7, 1)), custom)
    coarse = VertexSpace("fsaverage", np.array([N, N + 1]), np.array([], dtype=int))
    with pytest.raises(BrainfastError, match="whole space"):
        value_map(np.ones(2), coarse)
    with pytest.raises(BrainfastError, match="row for each vertex"):
        value_map(np.ones(3), space)
    with pytest.raises(BrainfastError, match="finite"):
        value_map(np.full(space.V, np.nan), space)
    with pytest.raises(BrainfastError, match="softmax"):
        layer_map(np.ones((space.V, 2)), space)
    with pytest.raises(BrainfastError, match="1 labels"):
        layer_map(layer, space, layers=[1, 2])
    with pytest.raises(BrainfastError, match="ROI"):
        layer_map(layer, space, rois=["PPA"])
    with pytest.raises(BrainfastError, match=r"\.png"):
        layer_map(layer, space, tmp_path / "map.jpeg")
    with pytest.raises(BrainfastError, match="colour map"):
        value_map(np.ones(space.V), space, cmap="nonsense")
    with pytest.raises(BrainfastError, match="low below high"):
        value_map(np.ones(space.V), space, limits=(1, 0))
    with pytest.raises(BrainfastError, match="degrees"):
        space_map(np.zeros((space.V, 2)), space, 0.0)
    one = Selectors(np.zeros((space.V, 2)), layer, np.ones(space.V))
    two = one._replace(layer=np.full((space.V, 2), 0.5))
    with pytest.raises(BrainfastError, match="same L"):
        selector_panel({"a": one, "b": two}, space, 8.4)
    assert not list(tmp_path.iterdir())
