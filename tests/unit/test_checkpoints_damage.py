"""What damage is found in real checkpoints, and what a file without sums is worth."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.launcher.checkpoints import check_file, digest_file

STATE = {"model": {"weight": torch.arange(600.0), "bias": torch.ones(7)}, "step": 120}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "step-120.pt"
    torch.save(STATE, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def dcp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp") / "step-120"
    dcp.save({"weight": torch.arange(600.0)}, checkpoint_id=folder, no_dist=True)
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def loads_equal(path: Path) -> bool:
    state = torch.load(path, weights_only=True)
    same = all(torch.equal(state["model"][name], STATE["model"][name]) for name in STATE["model"])
    return bool(same and state["step"] == STATE["step"])


def flip(content: bytes, offset: int, mask: int = 1) -> bytes:
    damaged = bytearray(content)
    damaged[offset] ^= mask
    return bytes(damaged)


def test_a_whole_file_is_good_with_and_without_its_digest(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved)
    assert check_file(path, "") == ""
    assert check_file(path, digest_file(path)) == ""


@pytest.mark.parametrize("keep", [1, 3, 4, 100, 0.25, 0.5, 0.9, -23, -1])
def test_a_truncated_file_is_found(saved: bytes, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved[: int(keep * len(saved)) if 0 < keep < 1 else int(keep)])
    assert "truncated" in check_file(path, "") or "damaged" in check_file(path, "")


@pytest.mark.parametrize(
    ("where", "find"),
    [
        ("tensor data", lambda raw: raw.index(STATE["model"]["weight"].numpy().tobytes()) + 1001),
        ("pickle", lambda raw: raw.index(b"weight") + 2),
        ("zip directory", lambda raw: raw.index(b"PK\x01\x02") + 20),
    ],
)
def test_one_flipped_bit_is_found(saved: bytes, tmp_path: Path, where: str, find: Callable[[bytes], int]) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(flip(saved, find(saved)))
    assert check_file(path, "") != ""


def test_the_damaged_record_is_named(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(flip(saved, saved.index(STATE["model"]["weight"].numpy().tobytes())))
    assert check_file(path, "") == "the record step-120/data/0 does not agree with its CRC-32"


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_changed_byte_is_found_or_makes_no_difference(
    saved: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    # Half of the draws hit the zip directory, which is small and has no sum of its own.
    directory = saved.index(b"PK\x01\x02")
    offset = data.draw(st.one_of(st.integers(0, len(saved) - 1), st.integers(directory, len(saved) - 1)))
    path.write_bytes(flip(saved, offset, data.draw(st.integers(1, 255))))
    assert check_file(path, "") != "" or loads_equal(path)


def test_an_empty_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.touch()
    assert check_file(path, "") == "the file is empty"


def test_a_file_of_zeros_is_found(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(len(saved)))
    assert "never written" in check_file(path, "")


def test_a_file_that_cannot_be_read_tells_why(tmp_path: Path) -> None:
    assert check_file(tmp_path / "gone.pt", "") == "it cannot be read: No such file or directory"


def test_a_digest_that_differs_is_damage_where_nothing_else_proves_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    digest = digest_file(path)
    assert check_file(path, digest) == ""
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size - 100))
    assert "when it was committed" in check_file(path, digest)
    assert check_file(path, "") == "", "no digest, no sums: this flip cannot be seen"


def test_a_whole_file_written_anew_under_the_same_name_is_good(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    torch.save(STATE, path)
    stale_digest = digest_file(path)
    torch.save(STATE | {"step": 130}, path)
    assert check_file(path, stale_digest) == ""


def test_a_file_saved_without_sums_is_judged_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert check_file(path, "") == ""
    assert "when it was committed" in check_file(path, "sha256:other")


def test_safetensors_show_truncation(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(range(16))
    path.write_bytes(whole)
    assert check_file(path, "") == ""
    for keep in (len(whole) - 1, 20, 4):
        path.write_bytes(whole[:keep])
        assert check_file(path, "") != ""
    path.write_bytes(whole[:8] + b"[" + whole[9:])
    assert "JSON" in check_file(path, "")


def test_a_dcp_folder_is_judged_by_its_digest(dcp_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(dcp_folder, tmp_path / "copy")
    digest = digest_file(folder)
    assert check_file(folder, digest) == ""
    data = next(folder.glob("*.distcp"))
    data.write_bytes(flip(data.read_bytes(), 700))
    assert "when it was committed" in check_file(folder, digest)
    assert check_file(folder, "") == "", "no digest, no sums: this flip cannot be seen"


def test_a_dcp_folder_shows_missing_content(dcp_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(dcp_folder, tmp_path / "copy")
    metadata = (folder / ".metadata").read_bytes()
    for keep in (0, 1, len(metadata) // 2, len(metadata) - 1):
        (folder / ".metadata").write_bytes(metadata[:keep])
        assert ".metadata" in check_file(folder, "")
    (folder / ".metadata").write_bytes(metadata)
    data = next(folder.glob("*.distcp"))
    data.write_bytes(b"")
    assert check_file(folder, "") == f"{data.name} is empty"


def test_the_digest_of_a_folder_depends_on_names_and_content_only(dcp_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(dcp_folder, tmp_path / "copy")
    assert digest_file(folder) == digest_file(dcp_folder)
    data = next(folder.glob("*.distcp"))
    data.rename(data.with_name("other.distcp"))
    assert digest_file(folder) != digest_file(dcp_folder)


def test_a_zip_that_torch_did_not_write_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(range(256)) * 40)
        archive.writestr("b.npy", b"content")
    assert check_file(path, "") == ""
    content = path.read_bytes()
    path.write_bytes(flip(content, content.index(b"a.npy") + 20))
    assert check_file(path, "") != ""


@settings(max_examples=100, derandomize=True)
@given(
    content=st.binary(max_size=200),
    suffix=st.sampled_from([".pt", ".safetensors"]),
    magic=st.sampled_from([b"", b"PK\x03\x04"]),
)
def test_no_content_makes_the_check_itself_fail(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, magic: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"any{suffix}"
    path.write_bytes(magic + content)
    check_file(path, "")
    (folder / "dcp").mkdir(exist_ok=True)
    (folder / "dcp" / ".metadata").write_bytes(content)
    check_file(folder / "dcp", "")
