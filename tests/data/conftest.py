"""A tiny Algonauts folder, written by hand and not by the simulator."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Names as the challenge's own mappings give them.
MAPPINGS = {
    "prf-visualrois": {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 7: "hV4"},
    "floc-words": {0: "Unknown", 1: "OWFA", 4: "mfs-words"},
}


@dataclass
class Folder:
    path: Path
    lh: np.ndarray  # vertices
    rh: np.ndarray
    fmri: np.ndarray  # [n,V]
    test_fmri: np.ndarray
    labels: dict  # atlas -> [V]

    def file(self, pattern):
        found = sorted(self.path.rglob(pattern))
        assert len(found) == 1, found
        return found[0]


def write(path, n=12, m=3, lh=5, rh=4, high=10242, size=8, nsd=7):
    random = np.random.default_rng(n + lh)
    for part in ("training_images", "training_fmri"):
        (path / "training_split" / part).mkdir(parents=True)
    (path / "test_split" / "test_images").mkdir(parents=True)
    (path / "roi_masks").mkdir()
    for kind, count, folder in (
        ("train", n, "training_split/training_images"),
        ("test", m, "test_split/test_images"),
    ):
        for row in range(count):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            number = row * nsd + (kind == "test")
            Image.fromarray(pixels).save(
                path / folder / f"{kind}-{row + 1:04d}_nsd-{number:05d}.png"
            )
    vertices = {
        "lh": np.sort(random.choice(high, lh, replace=False)),
        "rh": np.sort(random.choice(high, rh, replace=False)),
    }
    fmri = random.standard_normal((n, lh + rh)).astype(np.float32)
    labels = {atlas: random.choice(list(names), lh + rh) for atlas, names in MAPPINGS.items()}
    labels["prf-visualrois"][[0, lh]] = 1
    labels["floc-words"][:] = 0
    labels["floc-words"][1] = 4  # on the left only
    for side, columns in (("lh", slice(0, lh)), ("rh", slice(lh, None))):
        mask = np.zeros(163842, dtype=int)
        mask[vertices[side]] = 1
        np.save(path / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy", mask)
        target = path / "training_split" / "training_fmri" / f"{side}_training_fmri.npy"
        np.save(target, fmri[:, columns])
        for atlas in MAPPINGS:
            target = path / "roi_masks" / f"{side}.{atlas}_challenge_space.npy"
            np.save(target, labels[atlas][columns])
    for atlas, names in MAPPINGS.items():
        np.save(path / "roi_masks" / f"mapping_{atlas}.npy", names, allow_pickle=True)
    test_fmri = random.standard_normal((m, lh + rh)).astype(np.float32)
    return Folder(path, vertices["lh"], vertices["rh"], fmri, test_fmri, labels)


@pytest.fixture
def write_folder(tmp_path):
    """A function that writes a folder under the test's own, with any of `write`'s options."""
    return lambda name="subj01", **options: write(tmp_path / name, **options)


@pytest.fixture
def folder(write_folder):
    return write_folder()


def add_organiser(folder, scale=1.0):
    """test_fmri and noise_ceiling, the ceiling times `scale`."""
    ceiling = np.linspace(0, 0.9, folder.fmri.shape[1])
    left = len(folder.lh)
    for side, columns in (("lh", slice(0, left)), ("rh", slice(left, None))):
        for name, values in (
            ("test_fmri", folder.test_fmri[:, columns]),
            ("noise_ceiling", ceiling[columns] * scale),
        ):
            target = folder.path / "test_split" / name / f"{side}_{name}.npy"
            target.parent.mkdir(exist_ok=True)
            np.save(target, values)
    return ceiling


@pytest.fixture
def organiser():
    return add_organiser
