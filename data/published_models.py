"""Reads the tensors and plain values of a pickled torch file, and runs nothing that is in it.

A file of torch.save is a pickle, and a pickle is a program: it names functions and calls them.
This reader resolves no name by importing it. The few names that tensors and containers need stand
for functions of this module; names of other packages' classes, such as torchgan's losses, stand for
an object that holds nothing and does nothing; names of Python itself or of torch beyond these
mean that the file is no training checkpoint, and it is refused.
"""

from __future__ import annotations

import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.files import require_file

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
# Containers and numbers of Python that do nothing when they are made.
BUILTINS = {"set": set, "frozenset": frozenset, "complex": complex, "bytearray": bytearray}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Skipped:
    """Stands for an object of a class that is not read: takes everything and keeps nothing."""

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def __new__(cls, *given: Any, **named: Any) -> Skipped:
        return object.__new__(cls)

    def __call__(self, *given: Any, **named: Any) -> Skipped:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Take an item."""

    def extend(self, values: Any) -> None:
        """Take items."""

    def add(self, value: Any) -> None:
        """Take an item."""


class _Dict(OrderedDict):
    """An ordered dict whose pickled attributes, such as a state dict's versions, are left out."""

    def __setstate__(self, state: Any) -> None: ...


def read_published_model(path: str | Path) -> Any:
    """Return the content of a file of torch.save, zip or legacy (before torch 1.6): dicts, lists,
    tuples, sets, numbers, text, tensors on the CPU, and `Skipped` for everything else.

    Raises:
        UserError: missing, truncated, no such file, or one that names what no training checkpoint
            needs.
    """
    path = require_file(path, "published model")
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with open(path, "rb") as handle:
            return _read_legacy(handle, path.stat().st_size)
    except _Refused as error:
        raise UserError(f"{path}: refused: {error}") from error
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        struct.error,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # A broken pickle fails in whatever way its bytes happen to say.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: truncated or not a published model ({reason[:120]})") from error


class _Refused(Exception):
    """The file names what no training checkpoint needs."""


class _Storage:
    """Values of a storage, filled at once (zip) or after the tensors were laid out (legacy)."""

    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.values = torch.zeros(count, dtype=dtype)

    def fill(self, data: bytes) -> None:
        if len(data) != self.values.numel() * self.values.element_size():
            raise ValueError("a tensor's values are missing")
        if data:
            self.values.copy_(torch.frombuffer(bytearray(data), dtype=self.values.dtype))


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing.

    Args:
        handle: of the pickle.
        largest: bytes that the file can hold: no storage is larger.
    """

    def __init__(self, handle: BinaryIO, largest: int) -> None:
        super().__init__(handle, encoding="utf-8")
        self.largest = largest
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; nothing is looked up in the named module."""
        package = module.split(".")[0]
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"),
                              ("torch._utils", "_rebuild_tensor")):  # fmt: skip
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("builtins", "__builtin__") and name in BUILTINS:
            return BUILTINS[name]
        if (module, name) in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")):
            return Skipped()
        if (module, name) in (("builtins", "object"), ("__builtin__", "object")):
            return Skipped
        layers = ("torch.nn.modules", "torch.optim")
        of_layers = module.startswith(layers) and "." not in name
        known = package in sys.stdlib_module_names | {"__builtin__", "copy_reg", "torch", "nt"}
        if known and package != "__main__" and not of_layers:
            raise _Refused(f"it names {module}.{name}, which a training checkpoint has no use for")
        return Skipped

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that the pickle refers to, once for each key."""
        if pid[0] == "module":  # legacy files carry the source text of classes
            return Skipped
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("unknown reference")
        size = count * torch.empty(0, dtype=dtype).element_size()
        if not 0 <= size <= self.largest:
            raise pickle.UnpicklingError("a tensor larger than the file")
        if key not in self.storages:
            self.storages[key] = _Storage(dtype, count)
        return self.storages[key]


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    values = storage.values
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if min((offset, *size, *stride)) < 0 or math.prod(size) > values.numel():
        raise ValueError("a tensor larger than its values")
    if math.prod(size) and reach > values.numel():
        raise ValueError("a tensor beyond its values")
    return values.as_strided(size, stride, offset)


def _parameter(values: Tensor, *_: Any) -> Tensor:
    return values


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")
        (pickled,) = [name for name in names if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("written on a big-endian machine")
        with archive.open(pickled) as handle:
            reader = _Reader(handle, path.stat().st_size)
            content = reader.load()
        for key, storage in reader.storages.items():
            storage.fill(archive.read(f"{folder}data/{key}"))
    return content


def _read_legacy(handle: BinaryIO, largest: int) -> Any:
    magic, _, _ = (_Reader(handle, largest).load() for _ in range(3))
    if magic != LEGACY_MAGIC:
        raise ValueError("neither form of torch.save")
    reader = _Reader(handle, largest)
    content = reader.load()
    for key in _Reader(handle, largest).load():
        storage = reader.storages[key]
        (count,) = struct.unpack("<q", handle.read(8))
        if count != storage.values.numel():
            raise ValueError("a tensor's values are missing")
        storage.fill(handle.read(count * storage.values.element_size()))
    return content
