"""What a server tells about itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..engine import Engine
from ..group_engine import GroupEngine
from ..vertex_space import VertexSpace
from .limits import Limits
from .requests import About, PoolAbout

KINDS = {"blobgpt": "latent", "factortopy": "tokens"}  # of heads, by what they read


def about(engine: Engine | GroupEngine, name: str, pool: Any, limits: Limits) -> About:
    """The model, its vertices and regions, the pool and the limits."""
    spaces = spaces_of(engine)
    return About(
        version=_version(),
        model=name,
        model_hash=engine.card.model_hash,
        subjects=list(filter(None, spaces)),
        vertices={subject: space.V for subject, space in spaces.items()},
        rois={subject: space.roi_names() for subject, space in spaces.items()},
        pool=None if pool is None else _about_pool(pool, isinstance(engine, GroupEngine)),
        limits=limits,
    )


def spaces_of(engine: Engine | GroupEngine) -> Mapping[str, VertexSpace]:
    """The vertices of every subject; the key is "" of a model of one."""
    return engine.spaces if isinstance(engine, GroupEngine) else {"": engine.space}


def _about_pool(pool: Any, several: bool) -> PoolAbout:
    index = getattr(pool, "index", None)
    if index is None:  # candidates of a lab's own
        return PoolAbout(len(pool), "fp32", "")
    kind = "projection" if index.basis else KINDS.get(index.key.head, "features")
    alone = None if several and not index.basis else pool.engine
    subject = None if alone is None else alone.space.subject
    return PoolAbout(len(pool), index.key.dtype, kind, subject)


def _version() -> str:
    try:
        return version("brainfast")
    except PackageNotFoundError:
        return "source tree"
