"""Train on a lab's own arrays, predict through the compiled engine, draw the result.

    python examples/own_data.py --work own-data

Stands in for a lab: crops of photographs, and responses of 300 vertices of the left hemisphere
that follow the brightness of one corner of the image. The trunk is random, so nothing is fetched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import brainfast as bf
from brainfast.data.photographs import SCENES, cut, load_photograph
from brainfast.errors import BrainfastError
from brainfast.files import check_writable
from brainfast.surfaces import coordinates, mesh
from brainfast.training import RECIPES
from brainfast.vertex_space import VertexSpace


def simulate(n_images: int = 120) -> tuple[np.ndarray, list[str], np.ndarray, VertexSpace]:
    """Images [n,H,W,3], the photograph each was cut from, responses [n,V], and the vertices."""
    random = np.random.default_rng(0)
    scenes = [list(SCENES)[number % len(SCENES)] for number in range(n_images)]
    photographs = {name: load_photograph(name) for name in SCENES}
    images = np.stack([cut(photographs[name], random, size=128) for name in scenes])
    brightness = images[:, :64, :64].mean(axis=(1, 2, 3))
    signal = (brightness - brightness.mean()) / brightness.std()
    posterior = np.argsort(mesh("fsaverage5", "pial", "lh").coordinates[:, 1])[:300]
    space = VertexSpace("fsaverage5", np.sort(posterior), np.zeros(0, dtype=np.int64))
    gain = random.uniform(0.5, 1.0, size=space.V)
    noise = random.normal(size=(n_images, space.V))
    responses = (signal[:, None] * gain + noise * 0.5).astype(np.float32)
    return images, scenes, responses, space


def train(work: Path) -> None:
    """Everything: data, training, scores, the compiled engine, and a picture in `work`."""
    images, scenes, responses, space = simulate()
    data = bf.data.Arrays(
        images=images,
        responses=responses,
        coordinates=coordinates(space, "inflated"),
        space=space,
        groups=scenes,  # crops of one photograph stay on one side of the split
        subject="own",
    )
    encoder = bf.fit(
        "factortopy",
        data,
        trunk="vit_tiny_patch16_224",
        recipe=RECIPES["demo"].model_copy(update={"max_epochs": 2, "steps_per_epoch": 50}),
        pretrained=False,
        work=work / "run",
    )
    scores = encoder.evaluate(data.heldout)
    print("heldout:", scores.summary())

    engine = bf.load(encoder.save(work / "model")).compile()
    print("parity with float64:", encoder.parity(engine, images[:4]))
    response = engine.predict(images[:2])
    response.save(work / "response")
    response.plot().savefig(work / "response.png")
    print("wrote", work / "response.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("own-data"), help="folder to write")
    work = parser.parse_args().work
    try:
        check_writable(work)
        train(work)
    except (BrainfastError, OSError) as error:
        parser.exit(2, f"own_data: {error}\n")


if __name__ == "__main__":
    main()
