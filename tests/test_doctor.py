from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from brainfast import _C, doctor, machine
from brainfast.export import kernel_file


@pytest.fixture(scope="module")
def report():
    return doctor.diagnose()


def test_the_report_is_json_and_says_what_was_found(report):
    again = json.loads(json.dumps(report))
    assert again["cpu"]["instruction_set"] == _C.isa()
    assert again["cpu"]["model"] == machine.cpu_model() != ""
    assert again["cpu"]["threads"] == _C.num_threads()
    assert again["packages"]["numpy"] != doctor.NOT_INSTALLED
    assert set(again["cpu"]["usable"]) <= set(again["build"]["isas"])
    assert {"torch", "onnx"} == set(again["trunk_runtimes"])


def test_every_fact_is_one_line(report, capsys):
    doctor.print_report(report)
    lines = capsys.readouterr().out.splitlines()
    facts = sum(len(value) + 1 if isinstance(value, dict) else 1 for value in report.values())
    assert len(lines) == facts
    assert all("{" not in line and "[" not in line for line in lines)


def test_the_report_says_which_kernels_a_gpu_would_run(report, monkeypatch):
    built = hasattr(_C, "CudaFactorReadout")
    assert ("factor_readout" in report["gpu"]["kernels"]) == built
    for name in [name for name in vars(_C) if name.startswith(("Cuda", "cuda_score"))]:
        monkeypatch.delattr(_C, name)
    kernels = doctor.diagnose()["gpu"]["kernels"]
    assert "none in this build" in kernels
    assert kernels.endswith(f"in the source folder: {machine.ADD_CUDA_KERNELS}")
    for name in ("CudaVertexEmbed", "CudaFactorReadout", "cuda_score_topk"):
        monkeypatch.setattr(_C, name, object, raising=False)
    kernels = doctor.diagnose()["gpu"]["kernels"]
    assert kernels.startswith("factor_readout, score_topk, vertex_embed: on a GPU each is compared")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"problem": "CUDA driver version is insufficient"}, ("driver 12.4", "is insufficient")),
        ({"devices": [{"problem": "no kernel image is available"}]}, ("(compute 7.5", "no kernel")),
    ],
)
def test_a_gpu_or_driver_that_cannot_run_the_build_is_told(monkeypatch, capsys, found, words):
    card = {"name": "T4", "capability": "7.5", "memory_bytes": 15 << 30}
    devices = [card | device for device in found.get("devices", [])]
    info = {
        "compiled": True,
        "architectures": "80-real 90a-real",
        "runtime_version": "13.0",
        "driver_version": "12.4",
        "problem": "",
    }
    monkeypatch.setattr(doctor._C, "cuda_info", lambda: info | found | {"devices": devices})
    doctor.print_report(doctor.diagnose())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "code for sm_80, sm_90a" in lines
    assert all(any(word in line for line in lines) for word in words)


def test_architectures_are_told_in_nvidias_names(monkeypatch):
    card = {"name": "H200", "capability": "9.0", "memory_bytes": 139 << 30, "problem": ""}
    found = {
        "compiled": True,
        "architectures": "80-real 90-virtual 120",
        "runtime_version": "13.0",
        "driver_version": "",
        "problem": "",
        "devices": [card, card | {"problem": "no code for it"}],
    }
    monkeypatch.setattr(doctor._C, "cuda_info", lambda: found)
    gpu = doctor._gpu()
    assert gpu["code_for"] == ["sm_80", "PTX of sm_90 for later cards", "sm_120 and later"]
    assert gpu["driver"] is None
    assert gpu["devices"] == [
        "H200 (compute 9.0, 139 GiB)",
        "H200 (compute 9.0, 139 GiB): no code for it",
    ]


def test_a_missing_and_a_broken_package_are_reasons(monkeypatch, tmp_path):
    real = doctor.import_module

    def import_module(name: str):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        if name == "onnxruntime":
            raise ImportError("libonnx.so:\nno such file")
        return real(name)

    monkeypatch.setattr(doctor, "import_module", import_module)
    runtimes = doctor.diagnose()["trunk_runtimes"]
    assert runtimes["torch"] == "no: timm is not installed"
    assert runtimes["onnx"] == "no: onnxruntime does not import: libonnx.so: no such file"


def test_tensorrt_is_told_part_by_part(monkeypatch):
    """No part is there, then all are, on a machine with a GPU."""
    missing = "is not installed"
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_import_problem", lambda name: f"{name} {missing}")
    monkeypatch.setattr(kernel_file, "_C", SimpleNamespace(__file__="/nowhere/_C.so"))
    found = doctor._tensorrt()
    assert found["kernel"].startswith("no: a build without it; in the source folder: ")
    assert found["engines"] == f"no: tensorrt {missing}"
    assert found["engines_for_rtx"] == f"no: tensorrt_rtx {missing}"
    assert found["plugin_files"] == doctor.NOT_INSTALLED
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    monkeypatch.setattr(doctor, "_import_problem", lambda name: None)
    monkeypatch.setattr(doctor, "kernel_ptx", lambda: b"")
    monkeypatch.setattr(doctor, "_torch_gpu", lambda: "built for the CPU")
    assert doctor._tensorrt()["engines"] == "no: torch: built for the CPU"
    monkeypatch.setattr(doctor, "_torch_gpu", lambda: "uses NVIDIA H200")
    assert [fact.split()[0] for fact in doctor._tensorrt().values()] == [
        *("yes:", "yes:", "yes:", "installed")
    ]


@pytest.mark.parametrize("installed", [{"onnxruntime"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_both_onnxruntimes_are_a_warning(monkeypatch, installed):
    monkeypatch.setattr(
        doctor, "package_version", lambda name: "1.0" if name in installed else doctor.NOT_INSTALLED
    )
    assert len(doctor._warnings()) == len(installed) - 1


def test_a_forced_instruction_set_is_told(monkeypatch):
    monkeypatch.setenv("BRAINFAST_ISA", "portable")
    assert doctor.diagnose()["cpu"]["forced"] == "portable"


@pytest.mark.parametrize("gpu", [False, True])
def test_onnx_runtimes_providers_are_told(monkeypatch, gpu):
    found = ["CPUExecutionProvider", *(["CUDAExecutionProvider"] if gpu else [])]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: found)
    told = doctor.diagnose()["trunk_runtimes"]["onnx"]
    assert told.startswith("yes: fp32 on the CPU")
    assert ("device='cuda'" in told) == gpu
    assert ("needs onnxruntime-gpu" in told) != gpu


def test_serve_is_told_with_what_it_lacks(monkeypatch):
    assert doctor._serve().startswith("yes: HTTP")
    find = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "zmq" else find(name))
    assert doctor._serve() == "no: zmq not installed; pip install 'brainfast[serve]'"
