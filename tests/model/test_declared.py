"""What a learner's file says of itself is read from its bytes, as Python reads them."""

import codecs
import importlib.util

import pytest

from model import declared

SOURCE = """{cookie}
from model.flags import Flag, number


class Net:
    flags = (Flag("warmth", number(0), 1.0, "how it is heißt"),)
"""


def source(encoding="utf-8", cookie=""):
    return SOURCE.format(cookie=cookie).encode(encoding)


READ = {
    "plain": source(),
    "byte order mark": codecs.BOM_UTF8 + source(),
    "of Windows": codecs.BOM_UTF8 + source().replace(b"\n", b"\r\n"),
    "mark and cookie": codecs.BOM_UTF8 + source(cookie="# coding: utf-8"),
    "latin 1": source("latin1", "# -*- coding: latin-1 -*-"),
    "cp1252": source("cp1252", "#!/usr/bin/python\n# vim: set fileencoding=cp1252 :"),
}
UNREADABLE = {
    "latin 1 that does not say so": source("latin1"),
    "a null byte": source() + b"\0",
    "an unknown encoding": source(cookie="# coding: klingon"),
    "mark and another cookie": codecs.BOM_UTF8 + source(cookie="# coding: latin-1"),
    "no Python behind a mark": codecs.BOM_UTF8 + b"class Net:\n    def\n",
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "HERE", tmp_path)
    return tmp_path / "own.py"


def imported(path):
    spec = importlib.util.spec_from_file_location("own", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", READ)
def test_what_python_reads_is_read(name, file):
    file.write_bytes(READ[name])
    found = declared.Declared("own")
    assert found.problem is None and found.missing() is None and declared.defining(file.parent, "class Net") == ["own"]
    (flag,), (same,) = found.flags, imported(file).Net.flags
    assert (flag.name, flag.help) == (same.name, same.help) == ("warmth", "how it is heißt")


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_python_does_not_read_is_named(name, file):
    file.write_bytes(UNREADABLE[name])
    with pytest.raises((SyntaxError, ValueError)):
        imported(file)
    found = declared.Declared("own")
    assert found.flags == () and found.problem.startswith("it is no Python: ") and "\n" not in found.problem
    assert declared.defining(file.parent, "class Net") == ["own"]
