"""Torch files: what torch itself reads, and nothing that a hostile file could do."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.inert_pickle import Opaque, load_inert
from brainfast.torch_file import CALLS, read_torch_tensors


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


def refusal(path) -> str:
    with pytest.raises(BrainfastError) as caught:
        read_torch_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def members(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, changes: dict[str, bytes | None], kind=zipfile.ZIP_STORED):
    """The same file with members of other bytes, or without them."""
    parts = members(path)
    folder = next(iter(parts)).split("/")[0]
    parts |= {f"{folder}/{name}": content for name, content in changes.items()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in parts.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def described(path, old: bytes, new: bytes):
    """The same file with other bytes in its description."""
    (description,) = [v for k, v in members(path).items() if k.endswith("/data.pkl")]
    assert old in description
    return rewrite(path, {"data.pkl": description.replace(old, new)})


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type_shape_and_stride(tmp_path, dtype):
    base = (torch.arange(24).reshape(2, 3, 4) % 7).to(dtype)
    wanted = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1, :, 1::2],
        "scalar": base[1, 2, 3],
        "empty": base[:, :0],
        "parameter": torch.nn.Parameter(base.clone(), requires_grad=False),
    }
    found = read_torch_tensors(save(tmp_path / "a.pt", wanted))
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype is dtype
        assert tensor.shape == wanted[name].shape
        assert torch.equal(tensor, wanted[name])


def test_plain_values_and_nesting_come_back(tmp_path):
    value = {
        "epoch": 3,
        "big": 1 << 70,
        "lr": 1e-3,
        "flag": True,
        "none": None,
        "betas": (0.9, 0.99),
        "steps": [1, [2, "three"]],
        "size": torch.Size([2, 3]),
        "state": {0: {"step": torch.tensor(5.0)}},
        "ordered": OrderedDict(b=1, a=2),
    }
    found = read_torch_tensors(save(tmp_path / "a.pt", value))
    step = found.pop("state")[0]["step"]
    assert step == 5
    del value["state"]
    assert found == value
    assert type(found["ordered"]) is dict
    assert list(found["ordered"]) == ["b", "a"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_with_numpy_scalars_that_torch_itself_refuses(tmp_path, protocol):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    value = {
        "metric": np.float64(0.2),
        "count": np.int64(4),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    path = save(tmp_path / "a.pt", value, pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = read_torch_tensors(path)
    assert type(found["metric"]) is type(found["count"]) is Opaque
    assert found["model"].keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found["model"][name], tensor)
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_numpy_1_names_its_scalars_otherwise(tmp_path):
    path = save(tmp_path / "a.pt", {"metric": np.float64(0.2), "x": torch.ones(2)})
    described(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert torch.equal(read_torch_tensors(path)["x"], torch.ones(2))


def test_only_the_keys_asked_for_are_read(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.ones(2), "b": torch.zeros(3), "c": 1})
    rewrite(path, {"data/1": None})
    assert list(read_torch_tensors(path, keys=("a", "c"))) == ["a", "c"]
    assert "no storage '1'" in refusal(path)


def test_shared_storages_are_read_once(tmp_path):
    base = torch.arange(6.0)
    found = read_torch_tensors(save(tmp_path / "a.pt", {"all": base, "end": base[3:]}))
    assert found["end"].untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_calls_are_refused_by_name_and_not_made(tmp_path):
    marker = tmp_path / "ran"
    attack = Attack(os.system, f"touch {marker}")
    for number, value in enumerate([attack, {"a": attack}, {"a": [torch.ones(2), attack]}]):
        path = save(tmp_path / f"{number}.pt", value)
        assert f"'{os.system.__module__}.system'" in refusal(path)
    assert "builtin" in refusal(save(tmp_path / "eval.pt", {"a": Attack(eval, "1")}))
    assert "numpy" in refusal(save(tmp_path / "array.pt", {"a": np.ones(3)}))
    assert not marker.exists()
    torch.load(tmp_path / "0.pt", weights_only=False)
    assert marker.exists(), "the attack would have worked"


def test_a_pickle_cannot_change_our_functions():
    """BUILD on a function would set its attributes, for every file that is read afterwards."""
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__)stb."
    with pytest.raises(pickle.UnpicklingError, match="a change of"):
        load_inert(data, CALLS)


A = b"X\x01\x00\x00\x00a"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"
HOSTILE = {
    "a copy with every call": (b"ccollections\nOrderedDict\n](K\x01K\x02\x86e\x85R.", "argument"),
    "a size copied": (b"ctorch\nSize\n]\x85R.", "a size"),
    "long bytes": (b"c_codecs\nencode\n(X\xff\0\0\0" + b"a" * 255 + A + b"tR.", "255 characters"),
    "an id of two parts": (b"}" + A + b"(X\x07\0\0\0storageK\x01tQs.", "expected 5"),
    "no storage": (b"}" + A + b"(" + A + FLOATS + A + A + b"K\x01tQs.", "no storage"),
    "a storage called": (b"}" + A + FLOATS + b")Rs.", "called"),
    "a function as value": (b"}" + A + TENSOR + b"s.", "a value Global"),
    "a tensor of numbers": (b"}K\x01" + TENSOR + b"(K\x01K\x02K\x03K\x04tRs.", "without sizes"),
    "a list inside itself": (b"}" + A + b"]q\x01h\x01as.", "nested"),
    "deep lists": (b"}" + A + b"]" * 40 + b"a" * 39 + b"s.", "nested"),
    "a tuple as key": (b"}K\x01K\x02\x86K\x03s.", "keys"),
    "extension registry": (b"}q\xff\x82\x01.", "EXT1"),
    "memo entry 2^31": (b"}r\xff\xff\xff\x7f.", "memo 2147483647"),
    "frame of 2^63 bytes": (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", ""),
    "bytes of 2^31": (b"B\xff\xff\xff\x7fx.", ""),
    "empty": (b"", ""),
    "text": (b"garbage", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions(tmp_path, name):
    path = save(tmp_path / "a.pt", {"a": torch.ones(2)})
    description, reason = HOSTILE[name]
    assert reason in refusal(rewrite(path, {"data.pkl": b"\x80\x04" + description}))


def test_random_changes_of_a_file_are_refused_or_harmless(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.arange(12.0).reshape(3, 4), "m": np.float64(1)})
    parts = members(path)
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(parts["a/data.pkl"])
        for place in random.integers(0, len(changed), random.integers(1, 4)):
            changed[place] = random.integers(0, 256)
        rewrite(path, {"data.pkl": bytes(changed)})
        with suppress(BrainfastError):
            read_torch_tensors(path)


def test_what_is_shared_is_looked_at_once(tmp_path):
    """Thirty lists, each of the one before twice: two to the thirtieth items for a naive reader."""
    nested: list = [1]
    for _ in range(30):
        nested = [nested, nested]
    found = read_torch_tensors(save(tmp_path / "a.pt", {"a": nested}))["a"]
    assert found[0] is found[1]


def tensor_of(path, size, stride, offset=0, numbers=6):
    """A file with one tensor whose sizes are what a hostile writer says."""
    parts = save(path, {"a": torch.arange(float(numbers))})
    shape = b"K\x00K%c\x85q" % numbers
    head, tail = members(parts)[f"{path.stem}/data.pkl"].split(shape)
    strides = b"K\x01\x85q"
    after = tail.index(strides) + len(strides) + 1  # memo entry
    body = _number(offset) + _tuple(size) + _tuple(stride)
    return rewrite(parts, {"data.pkl": head + body + tail[after:]})


def _number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a%c" % len(data) + data


def _tuple(values) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def test_made_up_sizes_that_fit_are_read(tmp_path):
    found = read_torch_tensors(tensor_of(tmp_path / "a.pt", (2, 2), (3, 1), 1))["a"]
    assert found.tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((2,), (6,), 0),
        ((1,), (1,), 6),
        ((6,), (-1,), 5),
        ((-1,), (1,), 0),
        ((6,), (1,), -1),
        ((1 << 40,), (0,), 0),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((0, 1 << 40, 1 << 40), (1, 1, 1), 0),
        ((6,), (1, 1), 0),
        ((1,) * 65, (1,) * 65, 0),
        ((1 << 62,), (1 << 62,), 1 << 62),
    ],
)
def test_sizes_beyond_the_storage_are_refused(tmp_path, size, stride, offset):
    assert "a tensor" in refusal(tensor_of(tmp_path / "a.pt", size, stride, offset))


def test_storages_of_another_length_are_refused(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.ones(6)})
    assert "of 20 bytes for 6 numbers" in refusal(rewrite(path, {"data/0": b"\0" * 20}))
    assert "of 28 bytes for 6 numbers" in refusal(rewrite(path, {"data/0": b"\0" * 28}))
    path = save(tmp_path / "b.pt", {"a": torch.ones(6)})
    described(path, b"cpuq\x06K\x06", b"cpuq\x06J\xff\xff\xff\x7f")
    assert "of 24 bytes for 2147483647 numbers" in refusal(path)


def test_truth_values_are_0_or_1(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.ones(3, dtype=torch.bool)})
    assert "truth values" in refusal(rewrite(path, {"data/0": b"\0\1\7"}))


def test_a_storage_has_one_type(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int32)})
    description = members(path)["a/data.pkl"]
    at = description.index(b"X\x01\x00\x00\x001")
    same = description[:at] + description[at:].replace(b"\x00\x001", b"\x00\x000", 1)
    assert "two types" in refusal(rewrite(path, {"data.pkl": same}))


def test_cut_and_damaged_files(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.arange(5000.0)})
    whole = path.read_bytes()
    for length in (0, 10, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)
    middle = whole.index(torch.tensor([2500.0]).numpy().tobytes())
    path.write_bytes(whole[:middle] + b"\xff" + whole[middle + 1 :])
    assert "CRC" in refusal(path)


def test_zips_that_are_no_torch_files(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.zeros(1 << 16)})
    rewrite(path, {}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    rewrite(save(path, {"a": torch.ones(2)}), {"data.pkl": None})
    assert "0 members data.pkl" in refusal(path)
    rewrite(save(path, {"a": torch.ones(2)}), {"byteorder": b"big"})
    assert "byte order" in refusal(path)
    rewrite(save(path, {"a": torch.ones(2)}), {"../../../b/data.pkl": b"x"})
    assert torch.equal(read_torch_tensors(path)["a"], torch.ones(2)), "names are never paths"
    assert not (tmp_path.parent / "b").exists()
    save(path, {"a": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data.pkl", b"x")
    assert "two members" in refusal(path)
    np.savez(tmp_path / "numpy.npz", a=np.ones(2))
    refusal(tmp_path / "numpy.npz")


def test_claims_of_length_take_no_memory(tmp_path):
    """The directory says that a storage has 4 GB; the file is shorter than that."""
    path = save(tmp_path / "a.pt", {"a": torch.ones(4)})
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02", data.rindex(b"data/0") - 64)
    claim = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(data[: entry + 20] + claim + claim + data[entry + 28 :])
    assert "longer than the file" in refusal(path)


def test_other_files(tmp_path):
    old = save(tmp_path / "old.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    message = refusal(old)
    assert "before 1.6" in message
    assert "save it again" in message
    (tmp_path / "text.pt").write_text("hello")
    refusal(tmp_path / "text.pt")
    assert "a list" in refusal(save(tmp_path / "list.pt", [torch.ones(2)]))
    assert "nothing there" in refusal(tmp_path / "none.pt")
    assert "a folder" in refusal(tmp_path)
