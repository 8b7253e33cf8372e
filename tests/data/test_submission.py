import io
import zipfile

import numpy as np
import pytest

from brainfast.data.submission import CHALLENGE_VERTICES, write_submission
from brainfast.errors import BrainfastError
from brainfast.response import Response
from brainfast.vertex_space import VertexSpace

SIZES = {"subj01": (3, 2), "subj06": (2, 2)}


def prediction(n=4, V=5):
    return np.arange(n * V, dtype=np.float64).reshape(n, V)


def read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: np.load(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def test_layout(tmp_path):
    space = VertexSpace("fsaverage", [1, 2], [4, 5], subject="subj06")
    response = Response(prediction(3, 4).astype(np.float32), space)
    given = {"subj01": prediction(), "subj06": response}
    write_submission(tmp_path / "out" / "sub.zip", given, vertices=SIZES)
    found = read(tmp_path / "out" / "sub.zip")
    assert sorted(found) == [
        f"{subject}/{side}_pred_test.npy" for subject in SIZES for side in ("lh", "rh")
    ]
    assert all(array.dtype == np.float32 for array in found.values())
    assert (found["subj01/lh_pred_test.npy"] == prediction()[:, :3]).all()
    assert (found["subj01/rh_pred_test.npy"] == prediction()[:, 3:]).all()
    assert (found["subj06/rh_pred_test.npy"] == response.rh).all()
    first = (tmp_path / "out" / "sub.zip").read_bytes()
    write_submission(tmp_path / "out" / "sub.zip", given, vertices=SIZES)
    assert (tmp_path / "out" / "sub.zip").read_bytes() == first


def test_challenge_sizes(tmp_path):
    write_submission(tmp_path / "s.zip", {"subj08": np.zeros((1, 18981 + 20530), np.float32)})
    found = read(tmp_path / "s.zip")
    assert found["subj08/lh_pred_test.npy"].shape == (1, 18981)
    assert CHALLENGE_VERTICES["subj02"] == (19004, 20544)
    assert CHALLENGE_VERTICES["subj06"] == (18978, 20220)


def response(lh, rh, subject=None):
    space = VertexSpace("fsaverage", np.arange(lh), np.arange(rh), subject=subject)
    return Response(np.zeros((2, lh + rh), np.float32), space)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one subject"),
        ({"subj09": prediction()}, "one of subj01, subj06"),
        ({"subj01": prediction(4, 4)}, r"floats \[images,5\]"),
        ({"subj01": prediction()[0]}, "floats"),
        ({"subj01": prediction()[:0]}, "floats"),
        ({"subj01": prediction().astype(int)}, "floats"),
        ({"subj01": prediction() * np.nan}, "finite"),
        ({"subj01": np.full((4, 5), np.inf)}, "finite"),
        ({"subj01": response(2, 3)}, "3 left and 2 right vertices, got 2 and 3"),
        ({"subj01": response(3, 2, "subj06")}, "got subj06's"),
    ],
)
def test_refused_and_nothing_left(tmp_path, given, message):
    with pytest.raises(BrainfastError, match=message):
        write_submission(tmp_path / "s.zip", given, vertices=SIZES)
    assert list(tmp_path.iterdir()) == []


def test_name_must_end_in_zip(tmp_path):
    with pytest.raises(BrainfastError, match=r"\.zip"):
        write_submission(tmp_path / "s.tar", {"subj01": prediction()}, vertices=SIZES)
