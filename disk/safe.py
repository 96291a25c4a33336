"""Plain values and tensors in a file: compressed, checksummed, and nothing in it is executed when it is read.

The file is a gzip of what torch.save makes. The checksum is gzip's: torch.load does not notice a changed tensor.
"""

import codecs
import gzip
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib

import numpy as np
import torch

import errors
from disk import plain_numpy

EXPANDS_FREELY, MOST_EXPANSION = 256 << 20, 100  # a file beyond both, bytes and times its size, is a bomb
# what the pickle of plain tensors names. weights_only allows more, such as an array of as many bytes as one likes
KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NEW_KINDS = (  # whose tensors name the type of their numbers, and a storage of bytes
    *("uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
STORAGE = "torch.storage UntypedStorage"  # harmless only as a part of what a pickle says of a tensor's memory
HARMLESS = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    STORAGE,
    *(f"torch {kind}" for kind in NEW_KINDS),
    "collections OrderedDict",
    *(f"torch {kind}Storage" for kind in KINDS),
}
# what the pickles of NumPy's scalars and arrays name, of either of its versions; and what of ours stands in for it
NUMPY = {
    "numpy dtype": plain_numpy.Dtype,
    "numpy ndarray": plain_numpy.Array,
    "numpy.core.multiarray _reconstruct": plain_numpy.array,
    "numpy._core.multiarray _reconstruct": plain_numpy.array,
    "numpy.core.multiarray scalar": plain_numpy.scalar,
    "numpy._core.multiarray scalar": plain_numpy.scalar,
    "builtins bytes": plain_numpy.no_bytes,
}
LONGEST_ENCODING = 40  # letters of its name
BYTES = "_codecs encode"  # how protocol 2 writes bytes: as text and its encoding
HARMLESS |= {*NUMPY, BYTES, "__builtin__ bytes"}
OLD_PICKLES = 5  # before PyTorch 1.6: magic number, version, machine, the content, names of the tensors that follow
# what the readers of torch, zipfile, numpy, json and pickle raise on damage, and a state's reader on odd values
DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, MemoryError, AssertionError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError),
)


class OtherProtocol(ValueError):
    """A pickle that may be whole, but of a protocol that is not read."""


def most_unpacked(size):
    """Bytes that a file of so many bytes may unpack to; what unpacks to more was made to harm."""
    return max(EXPANDS_FREELY, MOST_EXPANSION * size)


def dump(content):
    """The bytes of a file that holds `content`: numbers, texts, lists, tuples, dictionaries and tensors.

    Raises ValueError where `load` would refuse it: nothing is written that cannot be read.
    """
    file = io.BytesIO()
    torch.save(_whole(content, {}, set()), file)
    try:
        _check_zip(file)
    except DAMAGED as error:
        raise ValueError(f"it holds what no file of plain values can: {one_line(error)}") from error
    plain, cut = file.getbuffer(), 0
    if len(plain) > EXPANDS_FREELY:  # some is stored as it is: a file of ours is never so small that it seems a bomb
        cut = len(plain) // MOST_EXPANSION + 1
    return b"".join(gzip.compress(part, level, mtime=0) for part, level in ((plain[:cut], 0), (plain[cut:], 1)) if part)


def _whole(value, made, storages):
    """The value with tensors that are parts of larger ones, or views of one another, as tensors of their own.

    made       {id: tensor} that has been made of a tensor
    storages   addresses of the memory that those take as they are
    """
    if isinstance(value, torch.Tensor):
        if id(value) not in made:
            storage = value.untyped_storage()
            is_whole = value.is_contiguous() and storage.nbytes() == value.numel() * value.element_size()
            alone = is_whole and storage.data_ptr() not in storages
            storages.add(storage.data_ptr())
            made[id(value)] = value.detach() if alone else value.detach().clone(memory_format=torch.contiguous_format)
        return made[id(value)]
    if isinstance(value, dict):
        return {key: _whole(each, made, storages) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_whole(each, made, storages) for each in value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in plain_numpy.KINDS:
        raise ValueError(f"it holds NumPy values of the type {value.dtype}; only numbers and texts can be kept")
    return value


def load(path, kinds):
    """The dictionary that `dump` wrote to a file.

    kinds   {key: type} of what it must hold
    Raises OSError where the file cannot be read; ValueError, with a reason in one line, where it is no such file, or a
    damaged or hostile one.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no file")
    try:
        plain = _unpack(path)
        _check_zip(plain)
        content = load_plain(plain)
        check_tensors(content, plain.getbuffer().nbytes)
    except (gzip.BadGzipFile, *DAMAGED) as error:
        raise ValueError(one_line(error)) from error
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"it holds no {key}")
    return content


def load_plain(file, **more):
    """torch.load of a path or a file whose pickles were checked: tensors, plain values, NumPy's scalars and arrays."""
    standing_in = [(ours, name.replace(" ", ".")) for name, ours in NUMPY.items()]
    with torch.serialization.safe_globals(standing_in):
        return torch.load(file, map_location="cpu", weights_only=True, **more)


def are_plain(named):
    """Whether a dictionary has texts as keys, and as values finite numbers, texts, None and tuples of those."""

    def is_plain(value):
        if isinstance(value, float):
            return math.isfinite(value)  # JSON, in which it may end, knows no other
        return isinstance(value, str | int | None) or (isinstance(value, tuple) and all(map(is_plain, value)))

    return all(isinstance(name, str) and is_plain(value) for name, value in named.items())


def one_line(error):
    """What an exception says, for a message to the user."""
    return errors.one_line(error, 200, type(error).__name__)


def _unpack(path):
    with open(path, "rb") as file:
        most = most_unpacked(os.fstat(file.fileno()).st_size)
        with gzip.GzipFile(fileobj=file) as unpacked:
            data = unpacked.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    return io.BytesIO(data)


def _check_zip(file):
    """Refuses a zip file that torch.save would not make of plain tensors."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename.lower() for member in members}) < len(members):
            raise ValueError("two of its members have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed twice")
        if sum(member.file_size for member in members) > file.getbuffer().nbytes:
            raise ValueError("its members overlap")
    check_pickles(file)
    file.seek(0)


def check_pickles(file, also=()):
    """check_pickle of all pickles in a file of torch.save, of either of its formats."""
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":  # how torch.load tells them apart
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(".pkl"):
                    check_pickle(archive.read(member), also)
    else:
        file.seek(0)
        for _ in range(OLD_PICKLES):
            check_pickle(file, also)


def check_pickle(pickled, also=()):
    """Refuses a pickle that names anything but what plain tensors need, with UnpicklingError; unpickles nothing.

    pickled   bytes, or a file, which is read up to the pickle's end
    also      further names that it may have, as "module name"
    """
    names, texts, storages = set(), set(), _Storages()
    for operation, argument, _ in pickletools.genops(pickled):
        storages.check(operation.name, argument)
        if operation.name == "PROTO" and argument != 2:
            raise OtherProtocol(
                f"it is a pickle of protocol {argument}; only 2 is read: save it so, as torch.save does"
            )
        if operation.name == "GLOBAL":
            names.add(argument)
            if argument not in HARMLESS and argument not in also:
                raise pickle.UnpicklingError(f"GLOBAL {argument.replace(' ', '.')} in it is never run")
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"GLOBAL {operation.name} in it is never run")
        if isinstance(argument, str):
            texts.add(argument)
    if BYTES in names and any(map(_is_other_encoding, texts)):  # which may double the length, again and again
        raise pickle.UnpicklingError(f"GLOBAL {BYTES.replace(' ', '.')} in it is never run but for latin1")


class _Storages:
    """Refuses a pickle that does anything with STORAGE but to say where the memory of a tensor is.

    Called, it would be as many bytes as one likes. It may come in ("storage", STORAGE, key, place, bytes), and nowhere
    else: what follows it makes this tuple, of which nothing can be taken out again.
    """

    AFTER = (  # it, in a pickle of protocol 2
        *(("BINUNICODE", "BINGET", "LONG_BINGET"), ("BINUNICODE", "BINGET", "LONG_BINGET")),
        *(("BININT", "BININT1", "BININT2", "LONG1"), ("TUPLE",), ("BINPERSID",)),
    )
    PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
    GETS = ("GET", "BINGET", "LONG_BINGET")

    def __init__(self):
        self._places, self._is_last, self._due = set(), False, ()

    def check(self, operation, argument):
        """Takes one operation after another."""
        if operation in self.PUTS:
            (self._places.add if self._is_last else self._places.discard)(argument)
            return
        self._is_last = (operation == "GLOBAL" and argument == STORAGE) or (
            operation in self.GETS and argument in self._places
        )
        if operation == "NONE" and self._due[:1] == (("TUPLE",),):
            raise OtherProtocol("it has tensors of new types in the format before PyTorch 1.6; save it in a newer one")
        if self._due and (self._is_last or operation not in self._due[0]):
            raise pickle.UnpicklingError(f"GLOBAL {STORAGE.replace(' ', '.')} in it is never run")
        self._due = self.AFTER if self._is_last else self._due[1:]


def _is_other_encoding(text):
    try:
        return len(text) < LONGEST_ENCODING and text != "latin1" and bool(codecs.lookup(text))
    except (LookupError, ValueError):
        return False


def check_tensors(content, most_bytes):
    """Refuses tensors that claim more numbers than a file has bytes: by strides of 0, or as views of one another."""
    left, seen, found = most_bytes, set(), [content]
    while found:
        value = found.pop()
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                left -= value.numel() * value.element_size()
                if left < 0 or not value.is_contiguous():
                    raise ValueError("its tensors overlap, or are larger than the file")
            elif isinstance(value, dict):
                found += value.values()
            elif isinstance(value, list | tuple):
                found += value
