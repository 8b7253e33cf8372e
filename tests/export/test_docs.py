"""The Python examples of docs/export.md, run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example, whole, photographs, tmp_path, monkeypatch, capsys):
    shutil.copy(whole, tmp_path / "subj01.onnx")
    Image.fromarray(photographs[0]).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(DOCS), "exec"), {})
    assert np.isfinite(float(capsys.readouterr().out))


def test_there_are_examples_with_and_without_brainfast():
    assert [("brainfast" in example.split("session")[0]) for example in EXAMPLES] == [False, True]
