"""Which engines benchmarks/tensorrt_latency.py builds and times; TensorRT and GPU are fakes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import tensorrt_latency
from brainfast.bench.latency import Opened


@pytest.fixture
def machine(monkeypatch):
    """Builds and opens nothing: `has_node` says whether the model has a node for the plugin."""
    found = SimpleNamespace(built=[], opened=[], asked=[], has_node=True)

    def export(model, path, *, readout, trunk_precision, **options):
        assert model == "encoder"  # whose folder keeps its card: these engines are deleted
        assert options["batches"] == (1, 8, 32)
        found.built.append((readout, trunk_precision))
        card = SimpleNamespace(model_dump=lambda mode: {"form": "tensorrt engine"})
        return SimpleNamespace(parity=[card])

    def read(path):
        readout = found.built[-1][0] if found.has_node else "operators"
        return SimpleNamespace(readout=readout, version="11.4.0"), b""

    def open_model(path, **options):
        found.opened.append((path.suffix, options.get("trunk_precision")))
        return Opened("it", (40, 50), lambda images: found.asked.append(len(images)), 1, "cpu")

    gpu = None, ("NVIDIA H200", "9.0")
    monkeypatch.setattr(tensorrt_latency, "find_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_latency, "open_encoder", lambda model: "encoder")
    monkeypatch.setattr(tensorrt_latency, "export_tensorrt", export)
    monkeypatch.setattr(tensorrt_latency, "read_engine", read)
    monkeypatch.setattr(tensorrt_latency, "open_model", open_model)
    return found


@pytest.mark.parametrize("has_node", [True, False])
def test_every_form_is_built_once(machine, tmp_path, has_node):
    machine.has_node = has_node
    opened = []
    found = tensorrt_latency.measure(tmp_path / "model", lambda open_: opened.append(open_()))
    forms = ["plugin", "operators"] if has_node else ["operators"]
    expected = [(trunk, form) for trunk in ("fp32", "fp16", "bf16") for form in forms]
    assert [(row["trunk"], row["readout"]) for row in found["engines"]] == expected
    assert len(machine.built) == len(expected)
    assert machine.opened == [(".engine", None)] * len(expected) + [("", "fp32"), ("", "bf16")]
    assert [row["trunk"] for row in found["torch"]] == ["fp32", "bf16"]


def test_the_result_tells_no_quantile_of_too_few_calls(machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensorrt_latency, "PACED_CALLS", 2)
    machine.has_node = False
    result = tmp_path / "result.json"
    tensorrt_latency.main([str(tmp_path / "model"), str(result), "--calls", "3", "--pace", "0.001"])
    found = json.loads(result.read_text())
    assert found["gpu"] == ["NVIDIA H200", "9.0"]
    tight, paced = (found["torch"][0]["latency"][name]["rows"] for name in ("at_once", "paced"))
    assert [(row["batch"], row["calls"], row["pace_s"]) for row in tight] == [
        (1, 3, None),
        (8, 3, None),
        (32, 3, None),
    ]
    assert [(row["batch"], row["calls"], row["pace_s"]) for row in paced] == [
        (1, 2, None),
        (1, 2, 0.001),
    ]
    assert {row["p99_ms"] for row in tight + paced} == {None}
    assert "opened in" in capsys.readouterr().out
