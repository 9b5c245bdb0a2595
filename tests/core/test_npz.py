"""The authors' published format: read exactly, or refused with the reason; never more in memory than it may hold."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emorl_core.adapters.npz import read_npz
from emorl_core.errors import AdapterError

Q = "encoder.block.0.layer.0.SelfAttention.q"


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


GOOD_NPZ = {
    f"base_model.model.{Q}_loraA": np.ones((2, 32), np.float16),
    f"base_model.model.{Q}_loraB": np.ones((32, 2), np.float64),
    f"base_model.model.{Q}_scaling": np.float64(4.0),
}


def test_the_published_npz_is_read(tmp_path: Path) -> None:
    adapter = read_npz(npz(tmp_path / "a.npz", **GOOD_NPZ), "empathy")
    ((name, pair),) = adapter.modules.items()
    assert (name, pair.rank, pair.scale, pair.a.dtype, pair.b.dtype) == (Q, 2, 4.0, torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_other": np.ones(1)}, "key 'x_other' is not of the form"),
        ({"y_loraA": np.ones((1, 2))}, "module 'y' has no loraB, scaling"),
        ({f"base_model.model.{Q}_scaling": np.ones(2)}, "scaling holds 2 numbers; allowed: one"),
        ({f"base_model.model.{Q}_scaling": np.float64("nan")}, "holds NaN or inf"),
        ({f"base_model.model.{Q}_loraA": np.full((2, 32), np.inf)}, "holds NaN or inf"),
        ({f"base_model.model.{Q}_loraA": np.ones((3, 32))}, "allowed: [r, in]"),
        ({"lm_head_loraA": np.ones((1, 4)), "lm_head_loraB": np.ones((4, 1)), "lm_head_scaling": 1.0}, "it adapts the head"),
    ],
)  # fmt: skip
def test_an_npz_that_does_not_make_sense_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        read_npz(npz(tmp_path / "a.npz", **{**GOOD_NPZ, **change}), "empathy")
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


def test_an_npz_that_holds_pickles_or_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", x_loraA=np.array([print], dtype=object))
    np.savez(tmp_path / "empty.npz")
    for name in ("text.npz", "objects.npz", "missing.npz"):
        with pytest.raises(AdapterError, match=f"{name}: cannot be read as .npz") as caught:
            read_npz(tmp_path / name, "x")
        assert "\n" not in caught.value.message
    with pytest.raises(AdapterError, match="the file holds no module"):
        read_npz(tmp_path / "empty.npz", "x")


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_npz(path, "empathy")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    return caught.value.message


def saved(array: np.ndarray) -> bytes:
    """As a `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(path: Path, entries: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


ENTRIES = {f"{key}.npy": saved(np.asarray(value)) for key, value in GOOD_NPZ.items()}


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_arrays_of_every_layout_are_read(prefix: str, tmp_path: Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"loraA": np.asfortranarray(a), "loraB": a.T.astype(">f8"), "scaling": np.array([[2]], dtype=np.uint8)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **{f"{prefix}m.q_{part}": array for part, array in arrays.items()})
        pair = read_npz(tmp_path / "a.npz", "x").modules["m.q"]
        assert torch.equal(pair.a, torch.from_numpy(a))
        assert torch.equal(pair.b, torch.from_numpy(a.T.copy()))
        assert pair.scale == 2.0


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    """numpy takes the last."""
    path = npz(tmp_path / "a.npz", **GOOD_NPZ)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"base_model.model.{Q}_loraA.npy", saved(np.zeros((2, 32))))
    assert f"a.npz: cannot be read as .npz: it holds 'base_model.model.{Q}_loraA' twice" in refusal(path)
    path = npz(tmp_path / "b.npz", **GOOD_NPZ, **{f"{Q}_loraA": np.ones((2, 32))})
    assert f"module {Q!r} has loraA twice, with and without 'base_model.model.'" in refusal(path)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((2, 32)).astype("V2"), "loraA is of type |V2; allowed: float16, float32, float64 (bfloat16 has to be"),
        (np.ones((2, 32), np.int8), "loraA is of type int8"),
        (np.ones((2, 32), np.complex64), "loraA is of type complex64"),
        (np.full((2, 32), "x"), "loraA is of type <U1"),
        (np.full((2, 32), 1e300), "holds NaN or inf"),
        (np.zeros((2, 32), [("a", "f4")]), "loraA is of type"),
    ],
)
def test_numbers_of_another_kind_are_refused_by_name(array: np.ndarray, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(npz(tmp_path / "a.npz", **{**GOOD_NPZ, f"base_model.model.{Q}_loraA": array}))


@pytest.mark.parametrize("scaling", [np.array("4"), np.array(True), np.array(4j), np.array(b"4").astype("V2")])
def test_a_scaling_that_is_no_number_is_refused(scaling: np.ndarray, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **{**GOOD_NPZ, f"base_model.model.{Q}_scaling": scaling})
    assert "allowed: a number" in refusal(path)


def test_a_scaling_that_makes_the_update_infinite_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **{**GOOD_NPZ, f"base_model.model.{Q}_scaling": np.float64(1e39)})
    assert "has scale 1e+39, with which its B is beyond float32" in refusal(path)


def test_a_name_without_end_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {**ENTRIES, f"{'q' * 10_000}_loraA.npy": saved(np.ones(3))})
    assert "an array's name has 10,006 letters; allowed: up to 300" in refusal(path)


def test_every_cut_of_a_file_is_one_line(tmp_path: Path) -> None:
    whole = npz(tmp_path / "a.npz", **GOOD_NPZ).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        assert "a.npz: cannot be read as .npz: " in refusal(tmp_path / "a.npz")


def test_every_wrong_byte_is_one_line_or_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **GOOD_NPZ)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            adapter = read_npz(path, "empathy")
        except AdapterError:
            assert refusal(path)
        else:
            assert adapter.modules[Q].scale == 4.0


def test_other_files_by_that_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.ones(3))
    save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors")
    torch.save({"x": torch.ones(3)}, tmp_path / "a.pt")  # a zip as well
    (tmp_path / "a.txt").write_text("version https://example.org/spec")
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([1]))
    for name in ("a.npy", "a.safetensors", "a.pt", "a.txt", "a.pickle"):
        path.write_bytes((tmp_path / name).read_bytes())
        assert "a.npz: cannot be read as .npz: " in refusal(path), name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "is a Git LFS pointer, not the file itself" in refusal(path)
    zipped(path, {f"{Q}_loraA.npy": b"no array"})
    assert "is not an array as numpy saves it" in refusal(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "compressed by a method that numpy does not use" in refusal(zipped(path, ENTRIES, method=method))


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.npz")
    assert "is a FIFO; allowed: a regular file" in refusal(tmp_path / "a.npz")


def test_a_file_that_inflates_beyond_measure_is_refused_before_it_does(tmp_path: Path) -> None:
    zeros = np.zeros((64, 2**19), np.float32)  # 128 MiB, 128 kB in the file
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{**GOOD_NPZ, f"{Q}x_loraA": zeros})
    assert "inflate to more than 67,108,864, which no adapter does" in refusal(path)


def test_a_file_that_holds_more_than_its_header_says_is_refused(tmp_path: Path) -> None:
    """The bound is taken from the headers, so the headers must be true."""
    path = zipped(tmp_path / "a.npz", {f"{Q}_loraA.npy": saved(np.zeros((64, 2**18), np.float32))})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(mark) + offset
        data[place : place + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    assert "a.npz: cannot be read as .npz" in refusal(path)


@pytest.mark.parametrize("shape", [(10**12, 10**6), (2, 33), (2, -32), (2, 31)])
def test_an_array_whose_header_asks_for_more_than_there_is_takes_no_memory(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    array = saved(np.ones((2, 32), np.float32))
    header = str((2, 32)).encode()
    asked = array.replace(header + b", }" + b" " * (len(str(shape)) - len(header)), str(shape).encode() + b", }")
    assert asked != array
    path = zipped(tmp_path / "a.npz", {**ENTRIES, f"base_model.model.{Q}_loraA.npy": asked})
    assert "its header asks for" in refusal(path) or "is not an array" in refusal(path)
