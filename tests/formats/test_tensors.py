"""Tensor files: what is written in them arrives, floats as float32, and what is written to them is whole or not
there."""

import json
import mmap
import os
import struct
import threading

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from cq.errors import CqError, FormatError, UnsupportedError
from cq.formats.tensors import read_tensors, write_safetensors
from cq.model.deferred import read as read_array

RNG = np.random.default_rng(7)
FLOATS = ("float16", "float32", "float64")
OTHERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 4), (0, 3)]


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return (
        (RNG.standard_normal(shape) * 50).astype(dtype) if dtype != "uint64" else RNG.integers(0, 2**63, shape, dtype)
    )


def samples() -> dict[str, np.ndarray]:
    return {
        f"{dtype}.{i}": np.asarray(sample(dtype, shape)) for dtype in FLOATS + OTHERS for i, shape in enumerate(SHAPES)
    }


def assert_arrived(read: dict[str, np.ndarray], written: dict[str, np.ndarray]) -> None:
    assert set(read) == set(written)
    for name, array in written.items():
        wanted = array.astype(np.float32) if array.dtype.kind == "f" else array
        assert read[name].dtype == wanted.dtype.newbyteorder("=") and read[name].shape == wanted.shape
        found = read_array(read[name])
        assert type(found) is np.ndarray and found.flags.c_contiguous and found.flags.aligned
        assert found.dtype == read[name].dtype and found.dtype.isnative and found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


def test_safetensors_of_the_library_arrive(tmp_path):
    path, tensors = tmp_path / "a.safetensors", samples()
    safetensors.numpy.save_file(tensors, path, {"key": "välue"})
    read, metadata = read_tensors(path)
    assert_arrived(read, tensors)
    assert metadata == {"key": "välue"}


def test_bfloat16_arrives(tmp_path):
    tensors = {str(i): torch.randn(shape).bfloat16() for i, shape in enumerate(SHAPES)}
    tensors["special"] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-40, 3e38]).bfloat16()
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert_arrived(read_tensors(tmp_path / "a.safetensors")[0], {k: v.float().numpy() for k, v in tensors.items()})


def test_float32_is_mapped_not_read(tmp_path):
    safetensors.numpy.save_file({"a": np.ones((64, 64), np.float32)}, tmp_path / "a.safetensors")
    array = read_tensors(str(tmp_path / "a.safetensors"))[0]["a"].read()
    assert not array.flags.writeable
    while isinstance(array.base, np.ndarray):
        array = array.base
    assert isinstance(array.base, memoryview) and isinstance(array.base.obj, mmap.mmap)


def test_a_header_of_odd_length_gives_aligned_arrays(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    for pad in range(8):
        (tmp_path / "a.safetensors").write_bytes(
            struct.pack("<Q", len(header) + pad) + header + b" " * pad + np.float32([1, 2, 3]).tobytes()
        )
        assert_arrived(read_tensors(tmp_path / "a.safetensors")[0], {"a": np.float32([1, 2, 3])})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrives(tmp_path, save):
    tensors = samples() | {
        "fortran": np.asfortranarray(sample("float32", (3, 5))),
        "big": sample("float32", (3, 5)).astype(">f4"),
        "big.int": np.arange(6, dtype=">i4"),
        "long": sample("longdouble", (2, 2)),
        "many": np.zeros((200, 3000), np.float32),
    }
    save(tmp_path / "a.npz", text="välue", raw=np.bytes_("välue".encode()), **tensors)
    read, metadata = read_tensors(tmp_path / "a.npz")
    assert_arrived(read, tensors)
    assert metadata == {"text": "välue", "raw": "välue"}


def test_a_float64_beyond_float32_is_infinite_not_silent(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([1e300, -1e300]))
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.npz")[0]["a"], [np.inf, -np.inf])


@pytest.mark.parametrize(
    "path, error, words",
    [
        ("nothing.npz", FileNotFoundError, "nothing.npz"),
        ("", FormatError, "not a regular file"),
        ("a.onnx", UnsupportedError, ".safetensors or .npz"),
        ("a.bin", FormatError, "pickle"),
        ("a.PT", FormatError, "pickle"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, path, error, words):
    for name in ("a.onnx", "a.bin", "a.PT"):
        (tmp_path / name).write_bytes(b"something")
    with pytest.raises(error, match=words):
        read_tensors(tmp_path / path)


def test_a_path_of_another_type_is_a_bad_argument():
    with pytest.raises(CqError, match="path: wanted a str"):
        read_tensors(3)


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(FormatError, match="not a regular file"):
        read_tensors(tmp_path / "a.safetensors")


def test_written_files_are_read_by_the_library_and_by_cq(tmp_path):
    path, tensors = tmp_path / "a.safetensors", samples()
    write_safetensors(path, tensors, {"b": "2", "a": "väl\nue"})
    read = safetensors.numpy.load_file(path)
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"b": "2", "a": "väl\nue"}
    ours, metadata = read_tensors(path)
    assert_arrived(ours, tensors)
    assert metadata == {"b": "2", "a": "väl\nue"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


def test_written_bytes_depend_on_content_only(tmp_path):
    tensors, metadata = samples(), {str(i): "x" for i in range(8)}
    write_safetensors(tmp_path / "a.safetensors", tensors, metadata)
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_any_strides_and_byte_order_can_be_written_and_stay_as_they_are(tmp_path):
    base = RNG.standard_normal((6, 8)).astype(np.float32)
    arrays = {
        "t": base.T,
        "step": base[::2, ::-3],
        "big": base.astype(">f4"),
        "fixed": base.copy(),
        "same": np.broadcast_to(base[0], (4, 8)),
    }
    arrays["fixed"].flags.writeable = False
    before = {name: (array.copy(), array.strides, array.flags.writeable) for name, array in arrays.items()}
    write_safetensors(tmp_path / "a.safetensors", arrays)
    assert_arrived(read_tensors(tmp_path / "a.safetensors")[0], arrays)
    for name, (copy, strides, writeable) in before.items():
        assert arrays[name].strides == strides and arrays[name].flags.writeable == writeable
        np.testing.assert_array_equal(arrays[name], copy)


@pytest.mark.parametrize(
    "tensors, metadata, words",
    [
        ({"a": [1, 2]}, None, "'a' is list"),
        ({"a": np.array(["x"])}, None, "'a' is <U1"),
        ({"a": np.array([1j])}, None, "complex"),
        ({"a": np.array([None])}, None, "object"),
        ({1: np.zeros(1)}, None, "1 cannot be the name"),
        ({"__metadata__": np.zeros(1)}, None, "cannot be the name"),
        ({"\ud800": np.zeros(1)}, None, "Unicode"),
        ({}, {"a": 1}, "wanted str"),
        ({}, {"a": "x" * (33 << 20)}, "at most"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_written(tmp_path, tensors, metadata, words):
    with pytest.raises(CqError, match=words):
        write_safetensors(tmp_path / "a.safetensors", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_safetensors(path, {"a": np.ones(1000)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_mapped_can_be_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.arange(1000, dtype=np.float32)})
    mapped = read_tensors(path)[0]["a"]
    write_safetensors(path, {"a": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(mapped, np.arange(1000))


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    threads = [
        threading.Thread(target=write_safetensors, args=(path, {"a": np.full(5000, i, np.int32)})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(read_tensors(path)[0]["a"].tolist())) == 1 and list(tmp_path.iterdir()) == [path]


def test_where_it_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real" / "a.safetensors")
    write_safetensors(tmp_path / "link.safetensors", {"a": np.zeros(3)})
    assert (tmp_path / "link.safetensors").is_symlink() and (tmp_path / "real" / "a.safetensors").is_file()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "real" / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(CqError, match="not a regular file"):
        write_safetensors(tmp_path / "real", {"a": np.zeros(3)})
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_safetensors(tmp_path / "none" / "a.safetensors", {"a": np.zeros(3)})
