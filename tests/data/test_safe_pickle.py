import io
import os
import pickle

import numpy as np
import pytest

from brainfast.data.safe_pickle import read_mapping
from brainfast.errors import BrainfastError

NAMES = {0: "Unknown", 1: "V1v", 300: "hV4 é", 70000: "x" * 300, -2: ""}


def npy(payload, shape="()", descr="'|O'"):
    """A .npy file whose object data are the bytes `payload`."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (117 - len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + payload


@pytest.mark.parametrize("names", [NAMES, {5: "a"}])
def test_reads_what_numpy_saves(tmp_path, names):
    np.save(tmp_path / "m.npy", names, allow_pickle=True)
    assert read_mapping(tmp_path / "m.npy") == names
    assert read_mapping(tmp_path / "m.npy") == np.load(tmp_path / "m.npy", allow_pickle=True).item()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_every_protocol_and_numpy(tmp_path, protocol, module):
    """numpy 1 and 2 name their function differently; old files use old protocols."""
    payload = pickle.dumps(np.array(NAMES, dtype=object), protocol=protocol)
    if protocol < 4:  # later ones count the bytes of a name
        payload = payload.replace(b"numpy._core.multiarray", module)
    (tmp_path / "m.npy").write_bytes(npy(payload))
    assert read_mapping(tmp_path / "m.npy") == NAMES


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    command = f"touch {marker}"
    yield Attack(os.system, command)
    yield {0: Attack(os.system, command)}
    yield {Attack(os.system, command): "a"}
    yield Attack(eval, f"open({str(marker)!r}, 'w')")
    yield Attack(__import__, "os")
    yield Attack(np.fromfile, "/etc/passwd")
    yield Attack(bytearray, 10)


def test_hostile_pickles_are_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    for number, payload in enumerate(attacks(marker)):
        for protocol in (0, 2, 4):
            path = tmp_path / f"{number}-{protocol}.npy"
            inside = np.empty((), dtype=object)
            inside[()] = payload
            path.write_bytes(npy(pickle.dumps(inside, protocol=protocol)))
            with pytest.raises(BrainfastError, match="pickled dict of region ids") as caught:
                read_mapping(path)
            assert "\n" not in str(caught.value)
            bare = tmp_path / f"{number}-{protocol}-bare.npy"
            bare.write_bytes(npy(pickle.dumps(payload, protocol=protocol)))
            with pytest.raises(BrainfastError):
                read_mapping(bare)
    assert not marker.exists()


def test_a_pickle_cannot_change_our_functions(tmp_path):
    """BUILD on a function would set its attributes, for every file that is read afterwards."""
    change = b"c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__)stb."
    (tmp_path / "m.npy").write_bytes(npy(b"\x80\x02" + change))
    with pytest.raises(BrainfastError, match="a change of"):
        read_mapping(tmp_path / "m.npy")


def test_the_attack_would_have_worked(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"\x80\x04",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2^63 bytes
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray of 2^40 bytes
        b"\x80\x04}r\xff\xff\xff\x7f.",  # memo entry 2^31
        b"\x80\x04B\xff\xff\xff\x7fx.",  # bytes of 2^31
        b"\x80\x02ccopy_reg\n_reconstructor\n.",
        b"\x80\x02}\x82\x01.",  # extension registry
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # persistent id
        pickle.dumps({1: "a"}),  # a dict without its array
        pickle.dumps(np.arange(3)),
        pickle.dumps(np.array([{1: "a"}], dtype=object)),
        pickle.dumps(np.array("text", dtype=object)),
        pickle.dumps(np.array({}, dtype=object)),
        pickle.dumps(np.array({1: 2}, dtype=object)),
        pickle.dumps(np.array({"1": "a"}, dtype=object)),
        pickle.dumps(np.array({True: "a"}, dtype=object)),
        pickle.dumps(np.array({1: b"a"}, dtype=object)),
        pickle.dumps(np.array({1: "a"}, dtype=object))[:-9],
    ],
)
def test_other_payloads(tmp_path, payload):
    (tmp_path / "m.npy").write_bytes(npy(payload))
    with pytest.raises(BrainfastError, match=r"m\.npy"):
        read_mapping(tmp_path / "m.npy")


def test_other_files(tmp_path):
    path = tmp_path / "m.npy"
    payload = pickle.dumps(np.array(NAMES, dtype=object))
    numbers = io.BytesIO()
    np.save(numbers, np.arange(4))
    for content in (
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x07\x00" + npy(payload)[8:],
        npy(payload, shape="(1,)"),
        npy(payload, descr="'<i8'"),
        npy(payload, shape="__import__('os')"),
        payload,
        numbers.getvalue(),
        npy(payload) + b"\0" * (1 << 20),
    ):
        path.write_bytes(content)
        with pytest.raises(BrainfastError, match=r"m\.npy"):
            read_mapping(path)
    with pytest.raises(BrainfastError, match="nothing there"):
        read_mapping(tmp_path / "absent.npy")
