"""What stands in for NumPy when a pickle is read: scalars and arrays of plain numbers and texts, and nothing else.

NumPy's own functions make arrays of any size and of objects; these make what the bytes in the file are.
"""

import re

import numpy as np

KINDS = "biufUS"  # of types: bools, integers, floats, texts


class Dtype:
    """numpy.dtype("f4") and its state."""

    def __init__(self, name, *_):
        if not re.fullmatch(r"[biuf]\d\d?|[US]\d{1,4}", str(name)):
            raise ValueError(f"it has NumPy values of the type {str(name)[:40]}; only numbers and texts are read")
        self.plain = np.dtype(name)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.plain = self.plain.newbyteorder(state[1])


class Array(np.ndarray):
    """An array that has only what its state's bytes are."""

    def __new__(cls, *_):
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, data = state
        made = np.frombuffer(_as_bytes(data), dtype.plain).reshape(shape, order="F" if fortran_order else "C")
        super().__setstate__((1, made.shape, made.dtype, False, made.tobytes()))


def array(*_):
    """numpy's _reconstruct: an empty array, which then gets its state."""
    return Array()


def scalar(dtype, data):
    """numpy's scalar: the number or text that the bytes are."""
    (value,) = np.frombuffer(_as_bytes(data), dtype.plain)
    return value


def no_bytes(*_):
    """What protocol 2 has for bytes where there are none."""
    return b""


def _as_bytes(data):
    if not isinstance(data, bytes):
        raise ValueError("it has NumPy objects; only numbers and texts are read")
    return data
