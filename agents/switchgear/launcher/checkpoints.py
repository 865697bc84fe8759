"""Which checkpoint is good: digests, damage, and quarantine for what must not be loaded.

`torch.load` and `torch.distributed.checkpoint` (DCP) load a flipped bit without a word, so this reads every byte before a path
is handed out. Proof comes from the digest taken at commit or from the CRC-32 that `torch.save` keeps of each record. A file that
has neither (legacy `torch.save`, `.safetensors`, DCP, CRC switched off) cannot be proven: damage that shows in its structure is
found, a flipped bit in its data is not, and it is accepted with `proven=False`.

Works on files alone; call it while no rank of the job runs, since a file that is being written looks truncated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickletools
import stat
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

QUARANTINE = ".switchgear-quarantine"
DCP_METADATA = ".metadata"
SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar"})
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP64_END = b"PK\x06\x06"
_DOS_DIRECTORY = 0x10
_CHUNK_BYTES = 1 << 20
# A header of 100 MB describes millions of tensors; more is a length field gone bad.
_SAFETENSORS_HEADER_BYTES_MAX = 100 * 1000 * 1000
#: Every ext4 file system has it at its top, closed to all but root.
_NO_CHECKPOINT = "lost+found"
#: What cannot be looked at may be the newest of all.
_WRITTEN_UNKNOWN_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a checkpoint from when it was committed.

    step: None when no evidence names it.
    digest: as `digest_file` gave it; empty when none was taken.
    """

    step: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One checkpoint after its check.

    path: where it was found.
    step: from the catalog; None when unknown, or when the content is newer than the catalog's.
    digest: empty when it could not be read.
    damage: one plain sentence; empty when none was found.
    proven: every byte that `torch.load` uses agrees with a digest or CRC-32; False says no more than "no damage was found".
    quarantine_path: where it lies now; None when it was not moved.
    commit_time_unix_ns: when its content was last written.
    """

    path: Path
    step: int | None
    size_bytes: int
    digest: str
    damage: str
    proven: bool
    quarantine_path: Path | None
    commit_time_unix_ns: int


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """checked: newest first, down to the first good one; newest_good: that one, None when no checkpoint is left."""

    checked: list[Checked]
    newest_good: Checked | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the content of a checkpoint says; the fields are those of `Checked`. readable: False when `damage` is an error of the storage."""

    damage: str
    proven: bool
    digest: str = ""
    readable: bool = True


def digest_file(path: Path) -> str:
    """`sha256:<hex>` of a file, or of a DCP folder: of its sorted relative names and the digests of their files.

    Reads in pieces of 1 MiB. Raises OSError when something cannot be read.
    """
    total = hashlib.sha256()
    if not path.is_dir():
        for chunk in _chunks(path):
            total.update(chunk)
        return f"sha256:{total.hexdigest()}"
    for member in _members(path):
        # A JSON line each, so that no name can imitate the border between two entries.
        entry = json.dumps([member.relative_to(path).as_posix(), digest_file(member)])
        total.update(entry.encode() + b"\n")
    return f"sha256:{total.hexdigest()}"


def check_file(path: Path, known_digest: str) -> str:
    """The damage of a checkpoint in one plain sentence, as `examine` finds it; empty when none was found."""
    return examine(path, known_digest).damage


def examine(path: Path, known_digest: str) -> Verdict:
    """Reads a checkpoint whole: once when its digest is the known one, twice otherwise. Never raises for its content.

    known_digest: from its commit; empty when there is none. A digest that differs is damage, except where every record of the
    file agrees with its own CRC-32: that is a whole checkpoint written under the same name after the digest was taken (a script
    that keeps one `latest.pt`), and to refuse it could cost the only one there is.
    """
    try:
        digest = digest_file(path)
        if known_digest and digest == known_digest:
            return Verdict("", True, digest)
        damage, proven = _check_folder(path) if path.is_dir() else _check_content(path)
    except OSError as error:
        return Verdict(_unreadable(error), False, readable=False)
    if not damage and not proven and known_digest:
        damage = f"its digest {digest} is not {known_digest}, which it had when it was committed"
    return Verdict(damage, proven and not damage, digest)


def checkpoint_paths(directory: Path, known: Mapping[str, Known] | None = None) -> list[Path]:
    """The checkpoints in a folder, newest first.

    By step when the step of each is known, else by the time of the last write, then by name. A checkpoint is a file with a usual
    suffix, with the magic of a zip file or with a path in `known`, or a folder with DCP's `.metadata`; dot-files, names with
    `.tmp`, other folders, second names (symbolic links within the folder) and names that are not UTF-8 are none. What cannot be
    looked at (EIO, EACCES, a stale mount) comes first, for it may be one. Empty when there is no such folder; raises OSError when
    there is one and it cannot be listed.
    """
    catalog = known or {}
    found: list[tuple[Path, int]] = []
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    for path in entries:
        if path.name.startswith(".") or ".tmp" in path.name or path.name == _NO_CHECKPOINT or not _is_utf8(path):
            continue
        try:
            if not _is_second_name(path) and _is_checkpoint(path, catalog):
                found.append((path, _written_ns(path)))
        except FileNotFoundError:
            continue  # gone since it was listed: the script keeps its newest N
        except OSError:
            found.append((path, _WRITTEN_UNKNOWN_NS))
    steps = {path: _step(catalog, path) for path, _ in found}
    by_step = all(step is not None for step in steps.values())
    found.sort(key=lambda item: ((steps[item[0]] or 0) if by_step else 0, item[1], item[0].name), reverse=True)
    return [path for path, _ in found]


def verify_newest(directory: Path, known: Mapping[str, Known], skip: frozenset[str] = frozenset()) -> VerifyOutcome:
    """Checks the checkpoints of a folder from the newest on and stops at the first good one.

    known: by path, as the catalog has them. skip: digests of contents that are walked past although they are good. What is damaged moves to `<directory>/.switchgear-quarantine/` under a name of its
    own: nothing is overwritten or deleted. What cannot be read (EIO, EACCES, a stale mount) is reported and stays, for the
    storage may be at fault and not the file. Each move is one rename: call it again after a crash. Never raises for one bad file;
    raises OSError when the folder cannot be listed.
    """
    checked: list[Checked] = []
    for path in checkpoint_paths(directory, known):
        entry = known.get(str(path), Known(None, ""))
        try:
            size_bytes, written_ns = _size_bytes(path), _written_ns(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            checked.append(Checked(path, entry.step, 0, "", _unreadable(error), False, None, 0))
            continue
        verdict = examine(path, entry.digest)
        damage, moved = verdict.damage, None
        if damage and verdict.readable:
            try:
                moved = _quarantine(path, directory / QUARANTINE)
            except FileNotFoundError:
                continue  # another launcher on the same shared folder was faster, or the script removed it
            except OSError as error:
                damage = f"{damage}; it stays where it is ({errno_text(error)})"
        # Written anew under its old name: the catalog's step was that of the content before.
        replaced = not damage and entry.digest not in {"", verdict.digest}
        step = None if replaced else entry.step
        result = Checked(path, step, size_bytes, verdict.digest, damage, verdict.proven, moved, written_ns)
        checked.append(result)
        if not damage and verdict.digest not in skip:
            return VerifyOutcome(checked, result)
    return VerifyOutcome(checked, None)


def _check_content(path: Path) -> tuple[str, bool]:
    """(damage, proven) of one file from its content alone."""
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        return "the file is empty", False
    with path.open("rb") as file:
        head = file.read(8)
    if not any(head) and not any(any(chunk) for chunk in _chunks(path)):
        return f"all {size_bytes} bytes are zero: it was never written to the disk", False
    try:
        is_zip = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        return f"the zip structure is damaged: {error}", False
    if is_zip:
        return _check_zip(path)
    if head.startswith(_ZIP_MAGIC) or _ZIP_MAGIC.startswith(head):
        return (
            f"the zip end record is missing: the file is truncated or overwritten ({size_bytes} bytes are left)",
            False,
        )
    if path.suffix == ".safetensors":
        return _check_safetensors(path, size_bytes), False
    return "", False


def _check_zip(path: Path) -> tuple[str, bool]:
    try:
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if record.file_size > 0]
            if not records:
                return "the zip directory names no record", False
            if contradiction := _check_zip_directory(path, archive):
                return f"the zip directory is damaged: {contradiction}", False
            if not any(record.CRC for record in records):
                return "", False  # torch.serialization.set_crc32_options(False)
            name = archive.testzip()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
    ) as error:
        return f"the zip structure is damaged: {error}", False
    return (f"the record {name} does not agree with its CRC-32", False) if name else ("", True)


def _check_zip_directory(path: Path, archive: zipfile.ZipFile) -> str:
    """Where the zip directory contradicts itself. It has no sum of its own; `zipfile` passes over much that torch's reader obeys."""
    with path.open("rb") as file:
        file.seek(archive.start_dir)
        tail = file.read()
        at = 0
        for record in archive.infolist():
            name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<3H", tail, at + 28)
            at += 46 + name_bytes + extra_bytes + comment_bytes
            if record.header_offset >= archive.start_dir:
                return f"the entry of {record.filename} points beyond the records"
            file.seek(record.header_offset)
            local = struct.unpack("<6xHH", file.read(10))
            if archive.NameToInfo[record.filename] is not record:
                return f"the name {record.filename} stands in it twice"
            if local != (record.flag_bits, record.compress_type) or record.volume:
                return f"the entry of {record.filename} differs from the record's own header"
            if record.compress_type == zipfile.ZIP_STORED and record.compress_size != record.file_size:
                return f"the entry of {record.filename} gives two sizes"
            if record.external_attr & _DOS_DIRECTORY and record.file_size:
                return f"the entry of {record.filename} calls a record with content a folder"
    count, start, size_bytes = len(archive.infolist()), archive.start_dir, at
    if tail[at : at + 4] == _ZIP64_END:
        if tail[at + 4 : at + 12] + tail[at + 16 : at + 76] != struct.pack(
            "<Q2I4Q4sIQI", 44, 0, 0, count, count, size_bytes, start, b"PK\x06\x07", 0, start + at, 1
        ):
            return "its zip64 end records are wrong"
        at += 76
    end, disk, start_disk, *counts, comment_bytes = struct.unpack_from("<4s4H8xH", tail, at)
    if (
        (end, disk, start_disk) != (b"PK\x05\x06", 0, 0)
        or set(counts) - {count, 0xFFFF}
        or at + 22 + comment_bytes != len(tail)
    ):
        return "its end record is wrong"
    return ""


def _check_safetensors(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(size_bytes - 8, _SAFETENSORS_HEADER_BYTES_MAX):
            return f"the header length {header_bytes} does not fit into a file of {size_bytes} bytes"
        header = file.read(header_bytes)
    try:
        end = max((v["data_offsets"][1] for k, v in json.loads(header).items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "the header is not the JSON of a safetensors file"
    if not isinstance(end, int) or 8 + header_bytes + end != size_bytes:
        return f"the header tells of {end} bytes of tensors, the file holds {size_bytes - 8 - header_bytes}"
    return ""


def _check_folder(path: Path) -> tuple[str, bool]:
    """DCP keeps no sums. Its `.metadata` is written last and is a pickle: parsed here, never executed."""
    try:
        for _ in pickletools.genops((path / DCP_METADATA).read_bytes()):
            pass
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        return f"{DCP_METADATA} is damaged: {error or type(error).__name__}", False
    empty = [member.name for member in _members(path) if member.stat().st_size == 0]
    return (f"{empty[0]} is empty", False) if empty else ("", False)


def _is_checkpoint(path: Path, known: Mapping[str, Known]) -> bool:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return (path / DCP_METADATA).is_file()
    if not stat.S_ISREG(mode):
        return False
    if path.suffix in SUFFIXES or str(path) in known:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    except PermissionError:
        return False  # nothing says that it is one, and folders hold files of other users


def _is_second_name(path: Path) -> bool:
    """A link such as `latest.pt` to a checkpoint that is listed itself; one that leads elsewhere or nowhere is no second name."""
    if not path.is_symlink():
        return False
    try:
        return path.resolve(strict=True).parent == path.parent.resolve()
    except (FileNotFoundError, RuntimeError):  # the latter: a link that leads to itself, which `stat` tells better
        return False


def _is_utf8(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        _warn_of_name(path)
        return False
    return True


@lru_cache(maxsize=256)  # so that each is warned of once, although folders are listed several times a second
def _warn_of_name(path: Path) -> None:
    log.warning("%r is left out: its name is not UTF-8; rename it if it is a checkpoint", os.fsencode(path))


def _quarantine(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    # A file of the same name may come and go bad again after a rollback.
    target = folder / f"{path.name}.{uuid.uuid4().hex}"
    path.rename(target)
    return target


def _step(known: Mapping[str, Known], path: Path) -> int | None:
    entry = known.get(str(path))
    return entry.step if entry else None


def _members(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size_bytes(path: Path) -> int:
    return sum(member.stat().st_size for member in _members(path)) if path.is_dir() else path.stat().st_size


def _written_ns(path: Path) -> int:
    return (path / DCP_METADATA if path.is_dir() else path).stat().st_mtime_ns


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {errno_text(error)}"


def errno_text(error: OSError) -> str:
    """The kernel's own words for it."""
    return os.strerror(error.errno) if error.errno else str(error)
