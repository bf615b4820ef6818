"""Files that are on the disk when it is said so, and that are believed only after their size and checksum."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlagents import machine
from rlagents.errors import RunError

NO_ROOM = memoryview(b"")
_SMALL = 16 << 20  # bytes of a file that nothing vouches for
_AT_ONCE = 1 << 20  # bytes that are read, and checked while the cache still has them
_LARGEST_HEADER = 1 << 20  # bytes of a header of safetensors that describes rows
_DTYPES = {  # those of rows, as safetensors calls them
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "I32": torch.int32,
    "I64": torch.int64,
    "F32": torch.float32,
}


def write(file: Path, content: bytes) -> dict[str, Any]:
    """Writes a file and waits until it is on the disk; returns its size and checksum."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is either whole or not there.

    Raises:
        RunError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}") from error


def read(folder: Path, name: str, expected: Mapping[str, Any]) -> bytes:
    """Returns the content of a file that is as large as it should be, and is what it was."""
    return read_into(folder, name, expected).tobytes()


def read_into(folder: Path, name: str, expected: Mapping[str, Any], room: memoryview = NO_ROOM) -> memoryview:
    """Returns the same where there is room for it, or else in new memory; read and checked in one go."""
    file, size = folder / name, expected["size"]
    if not file.is_file() or file.is_symlink():
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size != size:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not {size}")
    if len(room) < size:
        _afford(size)
        room = memoryview(bytearray(size))
    content, checksum = room[:size], hashlib.sha256()
    with file.open("rb") as stream:
        for start in range(0, size, _AT_ONCE):
            piece = content[start : start + _AT_ONCE]
            if stream.readinto(piece) != len(piece):
                raise ValueError(f"{file.name} has fewer than {size} bytes")
            checksum.update(piece)
    if checksum.hexdigest() != expected["sha256"]:
        raise ValueError(f"{file.name} differs from its checksum")
    return content


def tensors(content: memoryview) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file as views of it; `safetensors.load` would copy them."""
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < start < min(len(content), _LARGEST_HEADER):
        raise ValueError(f"its header cannot take {start - 8} bytes")
    named: dict[str, Tensor] = {}
    for name, about in json.loads(content[8:start].tobytes()).items():
        first, last = about["data_offsets"]
        if not 0 <= first <= last <= len(content) - start:
            raise ValueError(f"{name} must lie within the file, got bytes {first} to {last}")
        flat = torch.from_numpy(np.frombuffer(content[start + first : start + last], np.uint8))
        named[name] = flat.view(_DTYPES[about["dtype"]]).view(about["shape"])
    return named


def read_small(file: Path) -> bytes:
    """Returns the content of a file that nothing vouches for, if it is small."""
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size > _SMALL:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, more than {_SMALL}")
    return file.read_bytes()


def inflate(content: memoryview, size: int) -> memoryview:
    """Returns what `content` holds compressed: exactly `size` bytes, and never more are made."""
    _afford(size)
    stream = zlib.decompressobj()
    plain = stream.decompress(content, size) if size > 0 else b""
    if len(plain) != size or (not stream.eof and stream.decompress(stream.unconsumed_tail, 1)):
        raise ValueError(f"it does not unfold to {size} bytes")
    return memoryview(bytearray(plain))


def _afford(size: int) -> None:
    if size > (free := machine.available()):
        raise ValueError(f"it takes {size} bytes of memory, and {free} are free")


def sync(folder: Path) -> None:
    """Waits until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
