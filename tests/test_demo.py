"""`make demo`, with fewer examples: a table and a picture."""

import re

import pytest

import demo

KNOWN = ("online", "ewc", "eralg4", "meralg1")


@pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache")
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    few = demo.COMMON.replace("samples_per_task 1000", "samples_per_task 4").replace("log_every 100", "log_every 40")
    monkeypatch.setattr(demo, "COMMON", few)
    assert demo.demo(seed=3) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^(\w+) +(\d+|-) +(\d\.\d+) +(\d\.\d+) +([+-]\d\.\d+) +\d", out, re.MULTILINE)
    assert [row[0] for row in rows] == list(KNOWN) and all(0 < float(row[2]) < 1 for row in rows)
    picture = tmp_path / re.search(r"^picture: (.*)$", out, re.MULTILINE)[1]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert len(list(picture.parent.glob("*.json"))) == len(KNOWN)
