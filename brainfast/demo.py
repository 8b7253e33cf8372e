"""The whole tour on a simulated subject: simulate, train, evaluate, compile, check, time, draw."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch
import typer
from tqdm import tqdm

from .analysis.scores import Scores
from .bench import bench_readout, print_table, readout_case
from .card import ParityCard
from .data import Algonauts
from .data.simulated import Planted, recovery, write_subject
from .demo_report import FOUND, DemoResult, Unseen, write_report
from .encoder import Encoder
from .engine import Engine
from .maps import Selectors
from .score_table import score_lines
from .tokens import Tokens, downsample
from .training import RECIPES, Recipe, fit
from .trunks import Trunk

RANDOM_TRUNK = "vit_tiny_patch16_224"
PRETRAINED_TRUNK = "vit_tiny_patch16_224.augreg_in21k"
STAGES = 8


def run_demo(
    out: Path, *, pretrained: bool = False, seed: int = 0, n_images: int = 560
) -> DemoResult:
    """Run every stage, print what was found, and write maps and `report.html` into `out`."""
    started = time.perf_counter()
    stage = _Stages()
    stage(f"trunk {PRETRAINED_TRUNK if pretrained else RANDOM_TRUNK}")
    trunk = demo_trunk(pretrained=pretrained, seed=seed)
    if not pretrained:
        typer.echo("  its weights are random: scores show the method, not a trained trunk")
    stage("a simulated subject on the fsaverage5 cortex, in the Algonauts 2023 layout")
    subject = out / "subj01"
    planted = simulate(subject, trunk, n_images=n_images, seed=seed)
    data = open_subject(subject, seed=seed)
    stage("training FactorTopy")
    shutil.rmtree(out / "work", ignore_errors=True)  # tokens of an earlier tour's trunk or images
    encoder = train(data, trunk, out / "work", seed=seed)
    stage("evaluating on a photograph that was not trained on")
    scores = encoder.evaluate(data.heldout)
    selectors = _numpy_selectors(encoder)
    found = recovery(planted, *selectors)
    _print_findings(scores, data, found)
    stage("saving, folding, compiling")
    encoder, engine, parity = _compile(encoder, data, out / "model")
    scores.save(out / "model" / "scores" / "heldout")
    stage("timing the readout against Listing 1 and ONNX Runtime, in one process")
    table = bench_readout(
        readout_case(out / "model", vertices=0, layers=0, dim=0), batches=(1, 8), rounds=15
    )
    print_table(table)
    stage("predicting photographs of an unseen scene")
    unseen = _predict_unseen(engine, data)
    stage("drawing maps and the report")
    result = DemoResult(
        trunk, data, planted, encoder, engine, scores, selectors, found, parity, table, unseen
    )
    page = write_report(result, out)
    typer.echo(f"\n{page}  ({time.perf_counter() - started:.0f} s in all)")
    return result


def demo_trunk(*, pretrained: bool, seed: int) -> Trunk:
    """A ViT-tiny: with its published weights, or random ones whose layers can be told apart."""
    options = dict(RECIPES["demo"].trunk)
    if pretrained:
        options.pop("block_gain")
        return Trunk.create(PRETRAINED_TRUNK, pretrained=True, **options)
    return Trunk.create(RANDOM_TRUNK, pretrained=False, seed=seed, **options)


def simulate(
    folder: Path,
    trunk: Trunk,
    *,
    n_images: int = 560,
    seed: int = 0,
    vertices: int | None = None,
    progress: bool = True,
) -> Planted:
    """Write a simulated subject whose responses are a planted FactorTopy of the trunk's tokens."""
    bar = tqdm(desc="photographs", unit="image", disable=not progress)

    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    with bar:
        return write_subject(
            folder,
            trunk_tokens=lambda paths: _all_tokens(trunk, paths, progress),
            n_images=n_images,
            vertices=vertices,
            dim=int(RECIPES["demo"].head["dim"]),
            seed=seed,
            progress=advance,
        )


def open_subject(folder: Path, *, seed: int = 0) -> Algonauts:
    """Read the simulated subject with the reader that real data use."""
    return Algonauts(folder, groups=folder / "groups.csv", coordinates="fsaverage5", seed=seed)


def train(
    data: Algonauts,
    trunk: Trunk,
    work: Path,
    *,
    seed: int = 0,
    recipe: Recipe = RECIPES["demo"],
    progress: bool = True,
) -> Encoder:
    """Train FactorTopy with the demo's recipe."""
    return fit(
        "factortopy",
        data,
        trunk=trunk,
        recipe=recipe,
        work=work,
        seed=seed,
        device="cpu",
        cache_dtype="fp32",
        progress=progress,
    )


class _Stages:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, title: str) -> None:
        self.count += 1
        typer.secho(f"\n[{self.count}/{STAGES}] {title}", bold=True)


def _all_tokens(trunk: Trunk, paths: list[Path], progress: bool) -> Tokens:
    bar = tqdm(total=len(paths), desc="tokens", unit="image", disable=not progress)
    parts = []
    with bar:
        for tokens in trunk.features(paths):
            parts.append(downsample(tokens))
            bar.update(tokens.B)
    layers = range(parts[0].L)
    return Tokens(
        tuple(torch.cat([part.local[i] for part in parts]) for i in layers),
        tuple(torch.cat([part.global_[i] for part in parts]) for i in layers),
        parts[0].layers,
    )


def _numpy_selectors(encoder: Encoder) -> Selectors:
    folded = encoder.fold()
    return Selectors(folded.space, folded.layer, folded.scale)


def _print_findings(scores: Scores, data: Algonauts, found: dict[str, float]) -> None:
    typer.echo("\n".join(f"  {line}" for line in score_lines(scores, data.space)))
    typer.echo("  planted selectors recovered:")
    for name, value in found.items():
        selector, measure = FOUND[name]
        typer.echo(f"    {selector:34}{measure:20}{value:7.3f}")


def _compile(
    encoder: Encoder, data: Algonauts, folder: Path
) -> tuple[Encoder, Engine, list[ParityCard]]:
    encoder.save(folder, onnx=True)
    again = Encoder.load(folder)
    images = data.heldout.images[:4]
    expected = again.twin(images)
    engine = again.compile()
    forms = [
        engine,
        again.compile(precision="bf16"),
        again.compile(runtime="onnx", folder=folder),
        again.compile(trunk_precision="bf16"),
    ]
    parity = [
        again.parity(form, images, expected) for form in tqdm(forms, desc="parity", unit="form")
    ]
    again.card.write(folder)
    for card in parity:
        typer.echo(
            f"  trunk {card.form} {card.trunk_precision}, head {card.precision}:"
            f" largest error {card.max_error:.1e} of the response's standard deviation"
        )
    return again, engine, parity


def _predict_unseen(engine: Engine, data: Algonauts, count: int = 4) -> Unseen:
    challenge = data.challenge
    assert challenge is not None
    assert challenge.responses is not None
    rows = np.linspace(0, len(challenge) - 1, count).astype(np.int64)
    images = [challenge.images[int(row)] for row in rows]
    return Unseen(images, engine.predict(images), challenge.responses[rows])
