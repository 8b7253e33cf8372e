"""Training with bfloat16 operands against float32: loss and validation R2, as a picture.

Trains FactorTopy three times on the demo's simulated subject: in float32, with bfloat16 operands
from the same seed, and in float32 from another seed, the yardstick for what a difference means.

python benchmarks/loss_curves.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainfast.demo import demo_trunk, open_subject, simulate, train
from brainfast.training import RECIPES

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "loss_precision.png"
POINTS = 30  # of each curve


@dataclass(frozen=True)
class Curve:
    """One run of training: how it is drawn, and what happened."""

    label: str
    precision: str
    seed: int
    style: dict[str, object]
    history: list[dict[str, float]]

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.history]


RUNS = (
    ("float32, another seed", "fp32", 1, {"color": "0.7", "linewidth": 1.5}),
    ("float32", "fp32", 0, {"color": "#1f4e79", "linewidth": 3.0}),
    ("bfloat16 operands", "bf16", 0, {"color": "#e07b00", "linewidth": 1.5, "linestyle": "--"}),
)


def measure(folder: Path) -> list[Curve]:
    """Train the three runs on one subject and one trunk."""
    trunk = demo_trunk(pretrained=False, seed=0)
    simulate(folder / "subj01", trunk)
    data = open_subject(folder / "subj01")
    recipe = RECIPES["demo"]
    curves = []
    for index, (label, precision, seed, style) in enumerate(RUNS):
        changed = recipe.model_copy(
            update={
                "steps_per_epoch": recipe.max_steps // POINTS,
                "max_epochs": POINTS,
                "patience": POINTS,
                "head_precision": precision,
            }
        )
        work = folder / f"run{index}"
        if index:  # the tokens are those of the first run
            shutil.copytree(folder / "run0" / "tokens", work / "tokens")
        encoder = train(data, trunk, work, seed=seed, recipe=changed)
        curves.append(Curve(label, precision, seed, style, encoder.history))
    return curves


def draw(curves: list[Curve], path: Path) -> None:
    """Loss on the left, validation R2 on the right, over the training step."""
    matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False})
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, curves, "loss", "training loss (smooth L1 and regulariser)")
    _panel(right, curves, "r2", "validation R², mean over vertices")
    right.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _panel(axes: Axes, curves: list[Curve], name: str, label: str) -> None:
    for curve in curves:
        axes.plot(curve.values("step"), curve.values(name), label=curve.label, **curve.style)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = measure(Path(folder))
    draw(curves, options.out)
    for curve in curves:
        last = curve.history[-1]
        typer.echo(f"{curve.label:24} loss {last['loss']:.4f}  validation R2 {last['r2']:.4f}")


if __name__ == "__main__":
    main()
