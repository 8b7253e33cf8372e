"""A pool of pictures, for the page."""

import pytest

from page_world import make_pool, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def pool(images, tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pools") / "pool", images)
