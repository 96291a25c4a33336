"""Packs: what is packed is read as it was, once, and nothing in an old pack is lost."""

import gzip
import json
from contextlib import closing

import numpy as np
import pytest
import result_factory as factory

from disk import locks
from errors import UserError
from report import __main__ as command_line
from report import figures, make_report, pack, read

SMALL = {"n_tasks": 4, "examples": 300}


def small(model="meralg1", **options):
    return factory.result(model, memory=200, **SMALL | options)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "results"
    for seed in range(3):
        factory.write_json(folder, small(seed=seed))
    factory.write_pt(folder, small("gem"))
    factory.write_txt(folder, small("eralg5"))
    return folder


def names(place):
    return sorted(run.name for run in read.read_results(place)[0])


def test_a_pack_says_what_its_folder_says(folder, tmp_path, monkeypatch, capsys):
    """To the bit; its runs are found below a folder, too."""
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    out = tmp_path / "moved" / "all.jsonl.gz"
    out.parent.mkdir()
    assert command_line.main(["pack", str(folder), str(out)]) == 0
    assert "5 runs" in capsys.readouterr().out
    runs, skipped = read.read_results(folder)
    again, skipped_again = read.read_results(out.parent)
    assert not skipped and not skipped_again and len(runs) == 5
    by_name = {run.name: run for run in again}
    for run in runs:
        other = by_name[run.name]
        for key, value in vars(run).items():
            if isinstance(value, np.ndarray):
                assert value.dtype == getattr(other, key).dtype
                np.testing.assert_array_equal(value, getattr(other, key))
            elif key != "path":
                assert value == getattr(other, key), key
    for place in (folder, out):
        make_report(place, out=tmp_path / place.name)
    tables = [(tmp_path / place.name / "report.csv").read_text() for place in (folder, out)]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 1 + 3


def test_a_pack_is_plain_json_with_every_evaluation(folder, tmp_path):
    pack.pack([folder], tmp_path / "all.jsonl.gz")
    with gzip.open(tmp_path / "all.jsonl.gz", "rt") as file:
        head, *lines = map(json.loads, file)
    assert head == {"format": "mer-runs/1"}
    saved = small(seed=1)
    (line,) = [it for it in lines if it["name"] == saved["name"]]
    assert saved["args"].pop("save_path") and line == saved  # it is nobody's business where


def test_packing_again_loses_and_doubles_nothing(folder, tmp_path):
    out = tmp_path / "all.jsonl.gz"
    pack.pack([folder], out)
    before, bytes_before = names(out), out.read_bytes()
    assert pack.pack([folder, out], out) == (5, []) and out.read_bytes() == bytes_before
    factory.write_json(tmp_path / "more", small(seed=7))
    factory.write_json(tmp_path / "more", small(seed=0))  # is there
    assert pack.pack([tmp_path / "more"], out) == (6, [])
    assert names(out) == sorted([*before, small(seed=7)["name"]])
    other = small(seed=9) | {"name": small(seed=0)["name"]}  # whatever may be called the same
    factory.write_json(tmp_path / "odd", other)
    assert pack.pack([tmp_path / "odd"], out)[0] == 7


def test_of_one_run_what_tells_most_is_kept(tmp_path):
    saved, out = small("gem"), tmp_path / "all.jsonl.gz"
    for write, program, identity in (
        (factory.write_txt, read.TEXT, None),
        (factory.write_pt, read.ORIGINAL, None),
        (factory.write_json, read.THIS, saved["data"]["identity"]),
        (factory.write_txt, read.THIS, saved["data"]["identity"]),
    ):
        (tmp_path / write.__name__).mkdir(exist_ok=True)
        write(tmp_path / write.__name__, saved)
        assert pack.pack([tmp_path / write.__name__], out)[0] == 1
        (run,), skipped = read.read_results(out)
        assert (run.program, run.identity) == (program, identity) and not skipped
    (run,), (again,) = read.read_results(tmp_path / "write_json", out)
    assert again.reason == "1 of its runs are elsewhere too, and count once"


def test_a_damaged_pack_is_skipped_whole_and_not_added_to(folder, tmp_path):
    out = tmp_path / "packs" / "all.jsonl.gz"
    out.parent.mkdir()
    pack.pack([folder], out)
    whole = out.read_bytes()
    later = gzip.compress(b'{"format": "mer-runs/2"}\n')
    for content in (b"", whole[:-9], whole[:200], b"PK" + whole, later, gzip.compress(gzip.decompress(whole)[:-700])):
        out.write_bytes(content)
        runs, (skipped,) = read.read_results(out.parent)
        assert not runs or content[:2] == whole[:2]
        assert skipped.path.startswith("all.jsonl.gz") and "cannot be read" not in skipped.reason, skipped
        with pytest.raises(UserError, match="take another name"):
            pack.pack([folder], out)
        assert out.read_bytes() == content and [it.name for it in out.parent.iterdir()] == [out.name]


def test_a_hostile_pack_costs_little(tmp_path):
    with gzip.open(tmp_path / "long.jsonl.gz", "wb", 1) as file:
        for _ in range(3):
            file.write(b" " * (read.MOST_TOLD // 2))
    with gzip.open(tmp_path / "many.jsonl.gz", "wb", 1) as file:
        file.write(b'{"format": "mer-runs/1"}\n' + b"{}\n" * (read.MOST_RUNS + 1))
    runs, skipped = read.read_results(tmp_path)
    assert not runs and {it.path: it.reason for it in skipped} == {
        "long.jsonl.gz": "a line is larger than 512 MiB",
        "many.jsonl.gz": f"more than {read.MOST_RUNS} runs",
    }


def test_an_interrupted_pack_leaves_the_old_one(folder, tmp_path, monkeypatch):
    out = tmp_path / "packs" / "all.jsonl.gz"
    out.parent.mkdir()
    pack.pack([folder], out)
    before = out.read_bytes()
    factory.write_json(folder, small(seed=8))

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left"):
        patched.setattr(gzip.GzipFile, "write", full)
        pack.pack([folder], out)
    assert out.read_bytes() == before and [it.name for it in out.parent.iterdir()] == [out.name]
    with closing(locks.claim(tmp_path / "packs" / ".all.jsonl.gz.lock", create=True)):
        with pytest.raises(UserError, match="being written by another process"):
            pack.pack([folder], out)
    assert pack.pack([folder], out)[0] == 6


def test_wrong_places_and_names_are_said(folder, tmp_path, capsys):
    for arguments, words in (
        ([folder, tmp_path / "all.zip"], "a pack's name ends in .jsonl.gz; call it all.jsonl.gz"),
        ([tmp_path / "nowhere", tmp_path / "all.jsonl.gz"], "nowhere is no folder or pack"),
        ([folder, tmp_path / "no" / "all.jsonl.gz"], "cannot be written"),
    ):
        assert command_line.main(["pack", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    (folder / "half.json").write_text("{")
    assert command_line.main(["pack", str(folder), str(tmp_path / "all.jsonl.gz")]) == 0
    said = capsys.readouterr()
    assert "5 runs" in said.out and "skipped half.json: foreign or half-written" in said.err


def test_a_pack_of_nothing_is_not_written(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    for content in (None, "{"):
        if content:
            (tmp_path / "results" / "half.json").write_text(content)
        assert command_line.main(["pack", str(tmp_path / "results"), str(tmp_path / "all.jsonl.gz")]) == 2
        said = capsys.readouterr()
        assert "results holds no finished runs" in said.err and ("skipped half.json" in said.err) == bool(content)
        assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_three_hundred_runs_stay_small(tmp_path):
    """100 evaluations of 20 tasks each, as accuracies are: hits among 10,000."""
    for seed in range(6):
        saved = factory.result(seed=seed, memory=200, log_every=250)
        hits = np.round(np.array(saved["result_a"]) * 10_000)
        told = {key: saved[key] for key in saved.keys() - {"stats", "accuracy_matrix", "baseline"}}
        factory.write_json(tmp_path, told | {"result_a": (hits / 10_000).tolist()})
        assert 80 <= len(saved["result_t"]) <= 110
    assert pack.pack([tmp_path], tmp_path / "all.jsonl.gz")[0] == 6
    assert (tmp_path / "all.jsonl.gz").stat().st_size / 6 * 300 < 25e6
