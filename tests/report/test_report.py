"""The report: numbers against plain loops, tests against formulas, junk skipped, the page opened in a browser."""

import argparse
import base64
import csv
import gzip
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import result_factory as factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

import metrics
import report
from errors import UserError
from model import candidates
from model.flags import CHANCE, DATA, FREE, PLACE, memory_size
from report import __main__ as command_line
from report import figures, page, read, summary, tables
from run import settings as run_settings
from run.flags import RUN_FLAGS

ROOT = Path(__file__).parent.parent.parent
SMALL = {"n_tasks": 4, "examples": 300}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def small(model="meralg1", **options):
    return factory.result(model, **SMALL | options)


def found_in(folder):
    runs, skipped = read.read_results(folder)
    return *tables.experiments(runs), skipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two data sets: several learners, memory sizes, settings and seeds, an original run, and junk."""
    folder = tmp_path_factory.mktemp("results")
    for model, memory, n_seeds in (("online", 0, 3), ("ewc", 200, 3), ("gem", 200, 2), ("eralg4", 200, 3)):
        for seed in range(n_seeds):
            factory.write_json(folder, small(model, seed=seed, memory=memory))
    for memory in (200, 500):
        for seed in range(3):
            factory.write_json(folder / "deeper", small(seed=seed, memory=memory))
    factory.write_json(folder, small(seed=0, memory=200, lr=0.1))
    factory.write_json(folder, small(seed=0, memory=200, data_file="mnist_permutations.pt"))
    factory.write_pt(folder, small("gem", seed=0, memory=200, hours=-50))
    factory.write_txt(folder, small("eralg5", seed=0, hours=-50))
    (folder / "<img src=x onerror=alert(1)>|.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """(folder, Report) of the whole report."""
    out = tmp_path_factory.mktemp("out")
    expected = [{"model": "meralg6", "data_file": "mnist_rotations.pt", "lr": 0.03, "memories": 200}]
    return out, report.make_report(folder, out=out, expected=expected)[0]


# -- numbers


def test_csv_and_markdown_hold_the_means_of_plain_loops(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    saved = [small(model, seed=seed, memory=500) for model in ("online", "gem", "meralg1") for seed in (0, 3, 4)]
    for it in saved:
        factory.write_json(tmp_path, it)
    report.make_report(tmp_path, out=tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert [row["learner"] for row in rows] == ["online", "gem", "meralg1"]
    for row in rows:
        mine = [it for it in saved if it["model"] == row["learner"]]
        assert row["n_seeds"] == "3" and row["seeds"] == "0 3 4"
        cells = []
        for metric in metrics.NAMES:
            values = [it["stats"][metric] for it in mine]
            mean = sum(values) / 3
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
            assert float(row[f"{metric}_mean"]) == pytest.approx(mean, rel=1e-5)
            assert float(row[f"{metric}_std"]) == pytest.approx(std, rel=1e-4, abs=1e-9)
            cells += [100 * mean, 100 * std]
        assert float(row["seconds_mean"]) == pytest.approx(np.mean([it["seconds"]["total"] for it in mine]), rel=1e-5)
        (line,) = re.findall(rf"^\| {row['learner']} \| [–\d]+ \|(.*) 3 \| [^|]* \|$", markdown, re.M)
        said = [float(number.replace("−", "-")) for number in re.findall(r"[−\d.]+", line)]
        assert said == pytest.approx(cells, abs=0.0051)


def test_the_factory_agrees_with_the_program_s_metrics():
    saved = small()
    found = metrics.summarise(saved["result_t"], saved["result_a"])
    assert {key: float(getattr(found, key)) for key in metrics.NAMES} == pytest.approx(saved["stats"], abs=1e-6)


def test_one_seed_has_a_mean_and_no_deviation(tmp_path):
    factory.write_json(tmp_path, small())
    (it,), _, _ = found_in(tmp_path)
    assert it.std("RA") is None and "±" not in tables.percent(it, "RA")
    assert list(csv.DictReader(tables.as_csv([it]).splitlines()))[0]["RA_std"] == ""


@pytest.mark.parametrize(
    "model, args, n_tasks, size",
    [
        ("meralg1", {"memories": 500}, 20, 500),
        ("eralg4", {"memories": 200, "n_memories": 7}, 20, 200),
        ("gem", {"n_memories": 256}, 20, 5120),
        ("gem", {"n_memories": 0}, 20, None),
        ("ewc", {"n_memories": 10}, 100, None),
        ("online", {}, 20, None),
    ],
)
def test_memory_sizes(model, args, n_tasks, size):
    assert memory_size(model, args, n_tasks) == size


# -- what is one experiment


def test_only_flags_that_change_the_science_tell_experiments_apart(tmp_path):
    same = {
        "engine": "reference",
        "draws": "shuffle",
        "threads": 7,
        "log_every": 50,
        "save_path": "/else/",
        "cuda": True,
    }
    factory.write_json(tmp_path, small(seed=0))
    factory.write_json(tmp_path, small(seed=1, **same))
    factory.write_json(tmp_path, small(seed=2, n_hiddens=100.0))
    (it,), superseded, skipped = found_in(tmp_path)
    assert it.seeds == [0, 1, 2] and not superseded and not skipped and it.differs == ""

    factory.write_json(tmp_path, small(seed=0, lr=0.1))
    factory.write_json(tmp_path, small(seed=0, lr=0.1, gamma=0.5))
    found, _, _ = found_in(tmp_path)
    assert [(it.differs, it.seeds) for it in found] == [
        ("gamma 0.3 lr 0.03", [0, 1, 2]),
        ("gamma 0.3 lr 0.1", [0]),
        ("gamma 0.5 lr 0.1", [0]),
    ]


def test_versions_of_the_program_are_told_learner_by_learner(tmp_path):
    """Each learner's results have an identity of the program of their own: that alone is nothing to be warned of."""

    def said():
        runs, skipped = read.read_results(tmp_path)
        report = page.open_report(tmp_path, skipped, runs)
        return [line for line in page.notices(report) if "versions" in line]

    for model, code in (("online", "a" * 64), ("meralg1", "b" * 64)):
        factory.write_json(tmp_path, small(model) | {"code": code})
    assert said() == []
    factory.write_json(tmp_path, small("online", seed=1) | {"code": "c" * 64})
    assert said() == ["Runs of several versions of the program stand beside each other: 2 of online."]


def test_other_data_under_the_same_name_are_other_data(tmp_path):
    factory.write_json(tmp_path, small(seed=0))
    other = small(seed=1)
    other["data"]["identity"] = "ab" * 32
    factory.write_json(tmp_path, other)
    found, _, _ = found_in(tmp_path)
    assert len(found) == 2 and len({it.data for it in found}) == 2
    assert "mnist_rotations [abababab]" in [it.data for it in found]


def test_of_one_experiment_and_seed_the_newest_counts_once(tmp_path):
    old, new, newest = (small(seed=0, hours=hours) for hours in (1, 2, 3))
    for it in (newest, old, new):
        factory.write_json(tmp_path, it)
    (it,), superseded, _ = found_in(tmp_path)
    assert [run.name for run in it.runs] == [newest["name"]]
    assert {(a.name, b.name) for a, b in superseded} == {(old["name"], newest["name"]), (new["name"], newest["name"])}


def test_sizes_that_the_paper_calls_the_same_stand_together(tmp_path):
    for it in (
        small("gem", memory=5100, n_tasks=5),
        small("meralg1", n_tasks=5),
        small("eralg4", memory=200, n_tasks=5),
    ):
        factory.write_json(tmp_path, it)
    found, _, _ = found_in(tmp_path)
    assert [it.memory for it in found] == [5100, 200, 5120]
    assert tables.shelves(found) == {200: 200, 5100: 5120, 5120: 5120}
    assert {(it.a.model, it.b.model) for it in tables.comparisons(found)} == {("gem", "meralg1")}


# -- the original's files


def test_the_original_s_pt_gives_the_same_numbers(tmp_path):
    saved = small("gem", memory=200)
    factory.write_pt(tmp_path, saved)
    (run,), skipped = read.read_results(tmp_path)
    assert not skipped and run.program == read.ORIGINAL and run.seed == 0 and run.seconds == 123.456
    assert {key: getattr(run, key) for key in metrics.NAMES} == pytest.approx(saved["stats"], abs=1e-6)
    np.testing.assert_allclose(run.matrix, saved["accuracy_matrix"], atol=1e-6)
    np.testing.assert_allclose(run.position, np.array(saved["examples_seen"]) / 300, atol=1e-9)
    (it,), _ = tables.experiments([run])
    assert it.label == "gem (original) †" and it.memory == 200


def test_flags_that_are_numbers_of_numpy(tmp_path):
    for seed in (0, 1):
        kinds = {"seed": np.int64(seed), "memories": np.int32(200), "lr": np.float32(0.03), "odd": np.bool_(True)}
        factory.write_pt(tmp_path, small("meralg1", seed=seed, memory=200), **(kinds if seed else {"odd": True}))
    runs, skipped = read.read_results(tmp_path)
    assert not skipped and [run.seed for run in runs] == [0, 1] and {run.memory for run in runs} == {200}
    assert len(tables.experiments(runs)[0]) == 1


def test_the_original_s_txt_alone_stands_for_itself(tmp_path):
    saved = [small("eralg5", seed=seed) for seed in (0, 1)]
    for it in saved:
        factory.write_txt(tmp_path, it)
    runs, skipped = read.read_results(tmp_path)
    found, superseded = tables.experiments(runs)
    assert not skipped and not superseded and len(found) == 2
    assert (
        found[0].label == "eralg5 (text only) †"
        and found[0].settings is None
        and found[0].memory_text == "?"
        and found[0].differs.startswith("unknown, run")
    )
    by_name = {run.name: run for run in runs}
    for it in saved:
        assert by_name[it["name"]].BTI == pytest.approx(it["stats"]["BTI"], abs=1e-4)
        np.testing.assert_allclose(by_name[it["name"]].matrix, it["accuracy_matrix"], atol=1e-4)


@pytest.mark.parametrize("learner", ["er_ace", "mer_minibatch", "gem", "unknown", "not_here", "_of_a_stranger"])
def test_a_txt_tells_learner_and_data_apart(tmp_path, learner):
    saved = small("gem")
    saved["name"] = saved["name"].replace("gem_", f"{learner}_")
    factory.write_txt(tmp_path, saved)
    (run,), skipped = read.read_results(tmp_path)
    assert not skipped and (run.model, run.data_file) == (learner, "mnist_rotations.pt")


def test_a_run_is_read_once_from_the_best_of_its_files(tmp_path):
    saved = small("gem", memory=200)
    for write in (factory.write_json, factory.write_pt, factory.write_txt):
        write(tmp_path, saved)
    (run,), _ = read.read_results(tmp_path)
    assert run.program == read.THIS
    (tmp_path / f"{saved['name']}.json").unlink()
    (run,), _ = read.read_results(tmp_path)
    assert run.program == read.ORIGINAL and run.seed == 0
    (tmp_path / f"{saved['name']}.pt").write_bytes(b"PK\x03\x04 half")
    runs, (it,) = read.read_results(tmp_path)
    assert not runs and it.path.endswith(".pt") and "remove it to have its .txt read" in it.reason


def test_the_original_s_shuffled_runs_are_read_in_order_of_presentation(tmp_path):
    """Its row 0 is always labelled task 0, and its columns are in order of index."""
    saved = small("gem", memory=200)
    order = [2, 0, 3, 1]
    shuffled = dict(saved)
    shuffled["result_t"] = [0, *(order[t] for t in saved["result_t"][1:])]
    shuffled["result_a"] = [[row[order.index(task)] for task in range(4)] for row in saved["result_a"]]
    factory.write_pt(tmp_path, shuffled, shuffle_tasks="yes")
    (run,), _ = read.read_results(tmp_path)
    assert {key: getattr(run, key) for key in metrics.NAMES} == pytest.approx(saved["stats"], abs=1e-6)
    np.testing.assert_allclose(run.accuracies, saved["result_a"], atol=1e-6)


# -- curves


def test_curves_run_from_zero_to_the_number_of_tasks(tmp_path):
    saved = small(log_every=70)
    factory.write_json(tmp_path, saved)
    (run,), _ = read.read_results(tmp_path)
    np.testing.assert_allclose(run.position, np.array(saved["examples_seen"]) / 300, atol=1e-9)
    seen = [np.mean(row[: t + 1]) for t, row in zip(saved["result_t"], saved["result_a"], strict=True)]
    np.testing.assert_allclose(run.seen, seen, atol=1e-6)


def test_long_runs_are_thinned_and_keep_the_ends_of_tasks(tmp_path):
    saved = small(log_every=1)
    factory.write_json(tmp_path, saved)
    (run,), _ = read.read_results(tmp_path)
    assert len(run.position) <= read.MOST_ROWS + 4 and {0, 1, 2, 3, 4} <= set(run.position)
    ends = [run.accuracies[run.position == task][0] for task in (1, 2, 3, 4)]
    np.testing.assert_allclose(ends, saved["accuracy_matrix"], atol=1e-6)


def test_mean_curves_interpolate_where_runs_were_evaluated_elsewhere(tmp_path):
    factory.write_json(tmp_path, small(seed=0, log_every=100))
    factory.write_json(tmp_path, small(seed=1, log_every=50))
    runs, _ = read.read_results(tmp_path)
    coarse, fine = sorted(runs, key=lambda run: len(run.position))
    position, mean, std = figures.mean_curve(runs, lambda run: run.accuracies)
    np.testing.assert_array_equal(position, coarse.position)
    shared = fine.accuracies[np.isin(np.round(fine.position, 6), np.round(coarse.position, 6))]
    np.testing.assert_allclose(mean, (coarse.accuracies + shared) / 2, atol=1e-6)
    np.testing.assert_allclose(std, np.abs(coarse.accuracies - shared) / math.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(figures.mean_curve(runs, lambda run: run.accuracies[:, 0])[1], mean[:, 0], atol=1e-6)


# -- what is drawn


def drawn_of(found, name):
    """The figure of one of the functions of report.figures."""
    made = getattr(figures, name)(found, figures.looks(found))
    return made[0] if isinstance(made, tuple) else made


@pytest.mark.parametrize("name", ["first_task", "seen_tasks"])
def test_no_curve_leaves_its_panel(tmp_path, name):
    """With the best ones in the last panel."""
    for memory, model in ((20, "eralg4"), (500, "eralg5"), (5120, "meralg1")):
        factory.write_json(tmp_path, small(model, memory=memory, n_tasks=9))
    axes = drawn_of(found_in(tmp_path)[0], name).axes
    assert len(axes) > 1
    for axis in axes:
        low, high = axis.get_ylim()
        assert low == 0 and all(line.get_ydata().max() <= high for line in axis.lines) and axis.lines


@pytest.mark.parametrize("n_names", [2, 9])
@pytest.mark.parametrize("name", ["bars", "first_task", "seen_tasks", "task_curves", "memory", "seconds"])
def test_names_of_any_length_have_their_place(tmp_path, name, n_names):
    for i in range(n_names):
        for memory in (200, 500):
            saved = small("gem", memory=memory, seed=i)
            saved["model"] = saved["args"]["model"] = f"my_own_variant_of_replay_with_a_very_long_name_{i}"
            factory.write_json(tmp_path / str(i), saved)
    factory.write_json(tmp_path, small("online"))  # without a memory
    with figures.matplotlib.rc_context(figures.STYLE):
        figure = drawn_of(found_in(tmp_path)[0], name)
        figure.draw_without_rendering()
        texts = [text for axis in figure.axes for text in axis.get_children() if isinstance(text, Text)]
        texts += [text for axis in figure.axes for text in axis.get_yticklabels()]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert sum(f"_{n_names - 1}" in text.get_text() for text in texts) >= 1
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1, texts[i]
        assert not any(box.overlaps(other) for other in boxes[:i])


# -- damaged and foreign files


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_(change):
    saved = json.loads(json.dumps(small()))
    change(saved)
    return json.dumps(saved)


JUNK = {
    "empty.json": ("", "empty"),
    "half.json": (lambda: json.dumps(small())[:-400], "half-written"),
    "list.json": ('["mer-result/1"]', "format"),
    "later.json": ('{"format": "mer-result/2"}', "mer-result/2"),
    "foreign.json": ('{"a": 1}', "foreign"),
    "deep.json": ('"mer-result/1"' + "[" * 100_000, "half-written|nested"),
    "bare.json": ('{"format": "mer-result/1"}', "data is missing"),
    "nan.json": (
        lambda: with_(lambda it: it["stats"].update(RA=float("nan"))),
        "contradicts its evaluations: RA is nan",
    ),
    "type.json": (lambda: with_(lambda it: it["stats"].update(LA="0.9")), "contradicts its evaluations: LA is '0.9'"),
    "seed.json": (lambda: with_(lambda it: it.update(seed=None)), "seed is None"),
    "cell.json": (lambda: with_(lambda it: it["result_a"][2].__setitem__(1, float("nan"))), "no accuracies"),
    "percent.json": (lambda: with_(lambda it: it["result_a"][2].__setitem__(1, 89.0)), "no accuracies"),
    "matrix.json": (
        lambda: with_(lambda it: it["accuracy_matrix"][2].__setitem__(1, 0.7)),
        "accuracy_matrix is not theirs",
    ),
    "baseline.json": (lambda: with_(lambda it: it["baseline"].pop()), "baseline is not theirs"),
    "words.json": (lambda: with_(lambda it: it["result_a"][2].__setitem__(1, "0.5")), "no array of numbers"),
    "ragged.json": (lambda: with_(lambda it: it["result_a"][2].pop()), "different lengths"),
    "short.json": (lambda: with_(lambda it: it["result_t"].pop()), "do not fit"),
    "order.json": (lambda: with_(lambda it: it["data"].update(task_order=[0, 0, 1, 2])), "task_order is"),
    **{
        f"{key}.json": (
            lambda key=key: with_(lambda it: it["stats"].update({key: 0.01})),
            f"evaluations: {key} is 0.01, they give",
        )
        for key in metrics.NAMES
    },
    "stopped.json": (
        lambda: with_(lambda it: it.update({key: it[key][:-4] for key in ("result_t", "result_a", "examples_seen")})),
        "stopped after 3 of 4 tasks",
    ),
    "history.json": (lambda: with_(lambda it: it.update(history=[{"model": "online"}])), "history is"),
    "earlier.json": (
        lambda: with_(lambda it: it.update(earlier={"tasks": [0], "result_a": [[0.9], [0.5]], "RA_after": 0.8})),
        "evaluations: RA_after is 0.8, they give 0.5",
    ),
    "diverged.json": (lambda: with_(lambda it: it.update(status="diverged", failure="loss is nan")), "loss is nan"),
    "name.json": (lambda: with_(lambda it: it.update(model="<b>x</b>")), "not a plain name"),
    "flag.json": (lambda: with_(lambda it: it["science"].update({"a b": 1})), "no flag"),
    "bytes.json": (np.random.default_rng(0).bytes(5000), "foreign"),
    "notes.txt": ("remember the milk", "not named like a result"),
    f"gem_x.pt_2026_01_05_09_00_00_{'0' * 32}.txt": ("0.1 0.1\n|\n0.9 0.1\n", "half-written"),
    f"gem_x.pt_2026_01_05_09_00_01_{'0' * 32}.txt": (
        "0.1 0.1\n|\n0.9 x\n\nFinal Accuracy: 0.1\nBackward: 0.1\nForward:  0.1\n",
        "half-written",
    ),
    "long.json": (lambda: with_(lambda it: it["science"].update({"lr": "1" * 2000})), "lr in science is longer than"),
    "empty.pt": ("", "^empty$"),
    "random.pt": (np.random.default_rng(0).bytes(5000), "damaged"),
    "text.pt": ("version https://git-lfs.github.com/spec/v1", "foreign: not what torch.save writes"),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_named_and_never_counted(tmp_path, name):
    content, reason = JUNK[name]
    content = content() if callable(content) else content
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    factory.write_json(tmp_path, small())
    runs, (skipped,) = read.read_results(tmp_path)
    assert len(runs) == 1 and skipped.path == name and re.search(reason, skipped.reason), skipped


def test_pickles_that_carry_code_are_refused_unrun(tmp_path):
    import torch

    bomb = Bomb(tmp_path / "exploded")
    torch.save((bomb,) * 6, tmp_path / "zip.pt")
    torch.save((bomb,) * 6, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps((bomb,) * 6, protocol=2))
    torch.save({"state": torch.zeros(3)}, tmp_path / "weights.pt")
    runs, skipped = read.read_results(tmp_path)
    assert not runs and not (tmp_path / "exploded").exists()
    reasons = {it.path: it.reason for it in skipped}
    for name in ("zip.pt", "old.pt", "plain.pt"):
        assert re.search(r"it asks for (posix|nt).mkdir, which is no plain value, and is not run", reasons[name])
    assert "six parts" in reasons["weights.pt"]


def test_half_written_pt_files_are_skipped(tmp_path):
    whole = factory.write_pt(tmp_path, small("gem", memory=200)).read_bytes()
    for cut in np.linspace(1, len(whole) - 1, 12).astype(int):
        (tmp_path / f"cut{cut}.pt").write_bytes(whole[:cut])
    runs, skipped = read.read_results(tmp_path)
    assert len(runs) == 1 and len(skipped) == 12


def test_odd_things_in_the_folder_are_survived_quickly(tmp_path):
    began = time.monotonic()
    factory.write_json(tmp_path, small())
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.json").symlink_to(tmp_path / "self.json")
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("huge.json", "large.pt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(200 * 2**30)  # sparse
    runs, skipped = read.read_results(tmp_path)
    reasons = {it.path: it.reason for it in skipped}
    assert len(runs) == 1 and time.monotonic() - began < 10
    assert set(reasons) == {
        "folder.json", "loop", "self.json", "gone.pt", "endless.json", "pipe.json", "huge.json", "large.pt",
    }  # fmt: skip
    assert "512 MiB" in reasons["huge.json"] and "64 MiB" in reasons["large.pt"] and "folder" in reasons["folder.json"]


ODD_NAMES = [
    *("a(1).npz", "a[1].npz", "a,b.npz", "a&amp;b.npz", "q'uote.npz", 'q"uote.npz', "<b>.npz", "my data (2).pt"),
    *("~x", "#x", "$HOME", "$a$ $b$.pt", "`x`", "*x*", "-x", "- x", "_x_", "__x", ".hid", ".pt", "=1+1", "\\x", "a|b"),
    *("данные.npz", "数据.npz", "x" * 124 + ".npz", "я" * 124, " ", "a.b"),
]
BAD_NAMES = ["", "a\nb", "a\tb", "\x00", "\x1b[0m", "\u202eb", "\ud800", "bad\udcff.npz", "x" * 256]


@pytest.mark.parametrize("name", [*ODD_NAMES, *BAD_NAMES], ids=lambda name: ascii(name[:12]))
def test_a_run_may_have_the_names_that_the_report_counts(tmp_path, name):
    """Of a data file and of a learner, in each kind of file."""
    good = name in ODD_NAMES
    try:
        assert run_settings.parse([f"--data_file={name}"]).data_file == name and good
    except UserError as error:
        assert not good and re.search(r"--data_file '.*: a name has 1 to 255 .*; rename the file", str(error)), error
    for flag in ("model", "data_file"):
        saved = small()
        saved["args"][flag] = name
        if flag == "model":
            saved["model"] = name
        else:
            saved["data"]["file"] = name
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        (tmp_path / "a.json").write_text(json.dumps(saved))
        factory.write_pt(tmp_path, saved | {"name": "b"})
        runs, skipped = read.read_results(tmp_path)
        if good:
            assert len(runs) == 2 and not skipped and all(name in (run.model, run.data_file) for run in runs)
        else:  # or counted under a text that can be shown
            assert all(name not in (run.model, run.data_file) for run in runs)
            assert len(runs) + len(skipped) == 2 and all("not a plain name" in it.reason for it in skipped)


def test_odd_names_are_shown_as_they_are(tmp_path, monkeypatch):
    """In tables, figures and their files; nothing of them is markup."""
    monkeypatch.setattr(figures, "n_usable_cores", lambda: 1)  # so that these are its formats
    monkeypatch.setattr(figures, "FORMATS", {"svg": {}, "png": {"dpi": 20}})
    names = ["a(1).npz", "a[1].npz", "a&amp;b.npz", '<b>"x', "$a$ $b$.pt", "_`a`|*b*_", "- ,x", "数据.npz"]
    for turn, name in enumerate(names):
        saved = small(n_tasks=2, examples=200)
        saved["data"] |= {"file": name, "identity": f"{turn:064x}"}
        saved["history"] = [{"model": name, "data": "0" * 64, "data_file": name, "n_tasks": 2}] * (turn % 2)
        factory.write_json(tmp_path, saved | {"model": name, "name": f"run{turn}"})
    made, paths = report.make_report(tmp_path, out=tmp_path / "out")
    assert len(made.runs) == len(names) and not made.skipped
    drawn = [path for path in paths if path.suffix == ".png"]
    assert len({path.name for path in drawn}) == len(drawn) == 4 * len(names) + 3
    parsed = Page((tmp_path / "out" / "report.html").read_text())
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(name in parsed.text for name in names)
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
    assert {row["learner"].split(" after ")[0] for row in rows} == set(names)
    markdown = (tmp_path / "out" / "report.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} <= {11, 12, 6}
    assert not re.search(r"(?<!\\)[`$&]", re.sub(r"!\[.*", "", markdown))
    shown = ""
    for tag, attrs in parsed.tags:
        if tag == "img":
            svg = base64.b64decode(attrs["src"].split(",")[1]).decode()
            shown += "\n".join(ElementTree.fromstring(svg).itertext())
    assert all(name.strip() in shown for name in names)
    table = summary.summary(made.found).splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(names) + 3}


def odd(change):
    saved = small()
    change(saved)
    return saved


SURROGATE = "x\ud800\x00\n\x1b<b>"
ODD_FIELDS = {
    **{
        key: (lambda it, key=key: it.update({key: SURROGATE}))
        for key in ("commit", "engine", "draws", "threads", "code", "name", "status", "finished", "versions", "host")
    },
    "flag": lambda it: it["science"].update(lr=SURROGATE),
    "flag's name": lambda it: it["science"].update({SURROGATE: 1}),
    "data file": lambda it: it["data"].update(file=SURROGATE),
    "model": lambda it: it.update(model=SURROGATE),
    "identity": lambda it: it["data"].update(identity=SURROGATE),
    "origin": lambda it: it["data"].update(origin=SURROGATE),
    "host's name": lambda it: it.update(host={"name": SURROGATE, "cpu": SURROGATE, "cores": 10**400}),
    "version": lambda it: it.update(versions={SURROGATE: SURROGATE}),
    "note": lambda it: it.update(notes={SURROGATE: 1, "b": SURROGATE}),
    "failure": lambda it: it.update(status="failed", failure=SURROGATE),
    "history": lambda it: it.update(
        history=[{"model": SURROGATE, "data": SURROGATE, "data_file": SURROGATE, "n_tasks": 3}]
    ),
    **{
        f"finished {text}": (lambda it, text=text: it.update(finished=text))
        for text in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01", "9999-12-31T23:59:59")
    },
    "named year": lambda it: it.update(finished=None, name=f"gem_x_0001_01_01_00_00_00_{'0' * 32}"),
    **{f"note {value:.9e}" if abs(value) < 1e300 else f"note {str(value)[:9]}": (
        lambda it, value=value: it.update(notes={"a": value}))
       for value in (10**400, -(10**400), math.inf, math.nan, 1e299)},
    "numbers": lambda it: it.update(seed=10**400),
    "seconds": lambda it: it.update(seconds={"total": 10**400}),
    "stats": lambda it: it["stats"].update(RA=10**400),
    "examples": lambda it: it["examples_seen"].__setitem__(-1, math.inf),
    "more examples": lambda it: it["examples_seen"].__setitem__(-1, 10**400),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["json", "pack"])
@pytest.mark.parametrize("field", ODD_FIELDS)
def test_no_odd_field_costs_the_report_of_the_others(tmp_path, field, packed, monkeypatch):
    saved = odd(ODD_FIELDS[field])
    if packed:
        with gzip.open(tmp_path / "odd.jsonl.gz", "wt") as file:
            file.write(f'{{"format": "{read.PACK_FORMAT}"}}\n{json.dumps(saved)}\n')
    else:
        (tmp_path / "odd.json").write_text(json.dumps(saved))
    check_that_the_others_are_reported(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [b"bad\xff.json", b"bad\xff.pt", b"new\nline.json", b"folder\xff/a.json"], ids=ascii)
@pytest.mark.parametrize("content", ["x", None], ids=["junk", "a run"])
def test_no_odd_name_of_a_file_costs_the_report_of_the_others(tmp_path, name, content, monkeypatch):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_text(content or json.dumps(small(seed=7)))
    os.utime(path, (1e12, 1e12))
    check_that_the_others_are_reported(tmp_path, monkeypatch)


def check_that_the_others_are_reported(folder, monkeypatch):
    drawn = []

    def draw_one(found, run):
        drawn.extend(figures.draw((figures.bars, it.data, [it], figures.looks(found))) for it in found)
        return drawn

    monkeypatch.setattr(figures, "FORMATS", {"svg": {}})
    monkeypatch.setattr(figures, "draw_all", draw_one)
    factory.write_json(folder, small("gem", seed=1))
    made, paths = report.make_report(folder, out=folder / "report")
    assert "gem" in {it.model for it in made.found} and len(made.runs) + len(made.skipped) == 2
    assert not made.skipped or "cannot be read" not in made.skipped[0].reason
    for path in paths:
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", path.read_text())
    assert all(ElementTree.fromstring(it.svg) is not None for it in drawn)


def test_a_report_that_fails_leaves_the_old_one_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    factory.write_json(tmp_path, small(seed=0))
    _, paths = report.make_report(tmp_path)
    before = [path.read_bytes() for path in paths]
    factory.write_json(tmp_path, small(seed=1))
    for name in ("as_html", "as_markdown"):
        with monkeypatch.context() as context, pytest.raises(ZeroDivisionError):
            context.setattr(page, name, lambda *_: 1 / 0)
            report.make_report(tmp_path)
        assert [path.read_bytes() for path in paths] == before


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_field_reading_neither_fails_nor_believes_it(tmp_path, data):
    saved = small()
    saved["alignment"] = factory.alignment(saved["result_t"])
    at, path = (saved["alignment"], ["alignment"]) if data.draw(st.booleans()) else (saved, [])
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        path.append(key)
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(ANYTHING)
    (tmp_path / "it.json").write_text(json.dumps(saved))
    runs, skipped = read.read_results(tmp_path)
    assert len(runs) + len(skipped) == 1
    assert not skipped or "cannot be read" not in skipped[0].reason  # a rule named it, not the safety net
    for run in runs:
        values = [
            run.RA,
            run.LA,
            run.BTI,
            run.FWT,
            run.AAA,
            run.forgetting,
            run.seconds or 0,
            *run.accuracies.ravel(),
            *run.matrix.ravel(),
        ]
        assert np.isfinite(values).all() and np.abs(values[:6]).max() <= 1
        if run.cosine is not None:
            assert (
                not np.isinf(run.inner).any()
                and not (np.abs(np.concatenate((run.cosine, run.cosines), None)) > 1.1).any()
            )
        found, _ = tables.experiments([run])
        tables.as_csv(found)
        page.open_report("x", skipped, runs).provenance()


# -- significance


def t_tail(t, df):
    """P(|T| > t) of Student's t by numerical integration of its density."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    x = np.linspace(0, abs(t), 200_001)
    density = scale * (1 + x**2 / df) ** (-(df + 1) / 2)
    return 1 - 2 * float(((density[1:] + density[:-1]) / 2 * np.diff(x)).sum())


def seeds_of(folder, **wanted):
    """[Experiment] of these learners with these seeds, each with 200 memories where it has some."""
    for model, seeds in wanted.items():
        for seed in seeds:
            factory.write_json(folder, small(model, seed=seed, memory=200))
    return found_in(folder)[0]


def test_without_shared_seeds_it_is_welch_s_test(tmp_path):
    found = seeds_of(tmp_path, eralg4=range(4), gem=(2, 3, 4, 5))
    for it in tables.comparisons(found):
        a, b = it.a.values[it.metric], it.b.values[it.metric]
        va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
        t = (a.mean() - b.mean()) / math.sqrt(va + vb)
        df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
        assert it.p == pytest.approx(t_tail(t, df), abs=1e-6)
        assert it.p_holm == it.p  # the only comparison of its kind
        assert it.low < it.difference < it.high and (it.low < 0 < it.high) == (it.p > 0.05)
        assert (it.test, it.n) == ("Welch", "4, 4")
    assert [it.metric for it in tables.comparisons(found)] == ["RA", "BTI"]


def test_shared_seeds_are_pairs(tmp_path):
    """Of the seeds that both have; their differences, by Student's test."""
    found = seeds_of(tmp_path, eralg4=range(4), gem=(1, 2, 3, 9))
    for it in tables.comparisons(found):
        a, b = (
            np.array([getattr(run, it.metric) for run in side.runs if run.seed in (1, 2, 3)]) for side in (it.a, it.b)
        )
        difference = a - b
        t = difference.mean() / (difference.std(ddof=1) / math.sqrt(3))
        assert it.p == pytest.approx(t_tail(t, 2), abs=1e-6)
        assert it.difference == pytest.approx(difference.mean()) and it.low < it.difference < it.high
        assert (it.test, it.n) == ("paired", "3")


def test_learners_without_a_memory_to_size_are_compared_with_every_size(tmp_path):
    """EWC's memories, which no step learns from again, are no size. Each pair is tested once."""
    for model, memory in (("online", 0), ("ewc", 200), ("eralg4", 200), ("eralg4", 500), ("meralg1", 200)):
        for seed in range(3):
            factory.write_json(tmp_path, small(model, seed=seed, memory=memory))
    found = found_in(tmp_path)[0]
    pairs = [(it.memory, it.a.model, it.b.model) for it in tables.comparisons(found, ("RA",))]
    assert sorted(pairs, key=str) == [
        (200, "eralg4", "meralg1"), (200, "ewc", "eralg4"), (200, "ewc", "meralg1"), (200, "online", "eralg4"),
        (200, "online", "meralg1"), (500, "ewc", "eralg4"), (500, "online", "eralg4"), (None, "online", "ewc"),
    ]  # fmt: skip
    for size in (200, 500, None):  # Holm's family is a table
        family = [it for it in tables.comparisons(found, ("RA",)) if it.memory == size]
        assert [it.p_holm for it in family] == tables.holm([it.p for it in family])


def test_holm_steps_down():
    assert tables.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert tables.holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert tables.holm([]) == []


def test_nothing_is_claimed_of_fewer_than_three_seeds(tmp_path):
    for model, n_seeds in (("gem", 2), ("eralg4", 5), ("meralg1", 5)):
        for seed in range(n_seeds):
            factory.write_json(tmp_path, small(model, seed=seed, memory=200))
    found, _, _ = found_in(tmp_path)
    for it in tables.comparisons(found):
        few = "gem" in (it.a.model, it.b.model)
        assert (it.p is None and it.verdict == "too few seeds" and not it.differs) if few else it.p is not None
        assert few or it.p_holm == it.p  # untested pairs are no part of Holm's family


def test_equal_values_have_no_test(tmp_path):
    for model in ("gem", "eralg4"):
        for seed in range(3):
            factory.write_json(tmp_path, dict(small(model, seed=0, memory=200), seed=seed, name=f"{model}{seed}"))
    found, _, _ = found_in(tmp_path)
    assert {it.verdict for it in tables.comparisons(found)} == {"no spread to test by"}


# -- what is missing


def test_missing_names_experiments_without_runs_and_with_fewer_seeds(tmp_path):
    for seed in (0, 1, 2):
        factory.write_json(tmp_path, small("meralg1", seed=seed, memory=200))
    factory.write_json(tmp_path, small("online", seed=1))
    found, _, _ = found_in(tmp_path)
    common = {"data_file": "mnist_rotations.pt", "n_layers": 2, "save_path": "/nowhere", "seed": 7}
    there = {"model": "meralg1", "lr": 3e-2, "memories": 200.0, "cuda": False, "shuffle_tasks": False, **common}
    other_data = dict(there, data_file="mnist_permutations.pt")
    gaps = tables.missing([there, dict(there, memories=500), other_data, {"model": "gem", **common}], found)
    assert gaps == [
        "mnist_rotations: meralg1 lr 0.03 memories 500 shuffle_tasks no has no runs.",
        "mnist_permutations: meralg1 lr 0.03 memories 200 shuffle_tasks no has no runs.",
        "mnist_rotations: gem has no runs.",  # nor are flags named that all of the list share
        "mnist_rotations: online has seeds 1, lacks 0, 2.",
    ]


@pytest.mark.parametrize("with_science", [True, False], ids=["the run says", "its flags say"])
def test_flags_on_which_no_distribution_depends_split_no_experiment(tmp_path, with_science):
    """By their role, whatever the flag; and those that the learner does not read."""
    flags = [flag.name for flag in RUN_FLAGS if flag.role in (CHANCE, DATA, FREE, PLACE) and flag.name != "seed"]
    assert {"log_every", "engine", "data_path", "threads", "save_path"} <= set(flags)
    for seed, flag in enumerate([*flags, "memories"]):
        saved = small("online", seed=seed)
        saved["args"][flag] = 7
        if with_science and flag != "memories":
            saved["science"][flag] = 7
        elif not with_science:
            del saved["science"]
        factory.write_json(tmp_path, saved)
    (it,), _, skipped = found_in(tmp_path)
    assert not skipped and it.seeds == list(range(len(flags) + 1)) and "memories" not in it.settings


def test_the_same_tasks_under_two_names_are_one_experiment(tmp_path):
    for seed, file in enumerate(("mnist_rotations.pt", "mnist_rotations.pt", "turned.npz")):
        saved = small(seed=seed)
        saved["data"]["file"] = saved["args"]["data_file"] = file
        factory.write_json(tmp_path, saved)
    (it,), _, _ = found_in(tmp_path)
    assert (it.data, it.seeds) == ("mnist_rotations", [0, 1, 2])
    assert not tables.missing([{"model": "meralg1", "data_file": "turned.npz"}], [it])


def test_unknown_data_are_marked_wherever_they_are_compared(tmp_path):
    """The original's runs stand beside those on the only tasks of that name; where two have it, alone."""
    for seed in range(3):
        factory.write_json(tmp_path, small("gem", seed=seed, memory=200))
        factory.write_pt(tmp_path, small("gem", seed=seed, memory=200, hours=1))
    found, _, _ = found_in(tmp_path)
    assert [(it.data, it.label) for it in found] == [
        ("mnist_rotations", "gem"),
        ("mnist_rotations", "gem (original) †"),
    ]
    assert {it.b.label for it in tables.comparisons(found)} == {"gem (original) †"}
    runs, skipped = read.read_results(tmp_path)
    shown = page.open_report(tmp_path, skipped, runs)
    assert figures.UNKNOWN_DATA in page.notices(shown)
    assert [row["identity"] for row in csv.DictReader(tables.as_csv(found).splitlines())][1] == "unknown"
    drawn = figures.draw((figures.bars, None, found, figures.looks(found)))
    assert "gem (original) †".encode() in drawn.svg and figures.UNKNOWN_DATA in drawn.caption

    other = small("gem", seed=7, memory=200)
    other["data"]["identity"] = "ab" * 32
    factory.write_json(tmp_path, other)
    assert [it.data for it in found_in(tmp_path)[0] if "†" in it.label] == ["mnist_rotations [unknown]"]


def goes_on(saved, before, after=None):
    """A result() that --start_from made, after runs on other data; with the earlier tasks' accuracies if given."""
    history = [
        {"model": "online", "seed": saved["seed"], "data": data, "data_path": "/x", "data_file": f"{data}.pt",
         "data_seed": 0, "n_tasks": 2}
        for data in before
    ]  # fmt: skip
    saved["science"]["start_from"] = saved["args"]["start_from"] = f"results/{saved['seed']}.pt"
    earlier = after and {"tasks": [0, 1], "result_a": [[0.9, 0.7], [after, after]], "RA_before": 0.8, "RA_after": after}
    return saved | {"history": history, "earlier": earlier, "name": saved["name"][:-3] + "abc"}


def test_runs_that_went_on_are_grouped_by_learner_and_history(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    for seed in range(3):
        factory.write_json(tmp_path, small("online", seed=seed))
        factory.write_json(tmp_path, goes_on(small("online", seed=seed), ["letters"], after=0.5 + seed / 10))
    factory.write_json(tmp_path, goes_on(small("eralg4", seed=0), ["letters", "signs"]))
    shown, _ = report.make_report(tmp_path)
    assert not shown.skipped
    assert [(it.label, it.seeds) for it in shown.found] == [
        ("online", [0, 1, 2]),
        ("online after letters", [0, 1, 2]),
        ("eralg4 after letters by online, signs by online", [0]),
    ]
    it = shown.found[1]
    assert (it.mean("before"), it.mean("after"), it.std("after")) == pytest.approx((0.8, 0.6, 0.1))
    (row,) = shown.earlier("mnist_rotations").cells()
    assert [cell.text for cell in row[2:]] == ["80.00 ± 0.00", "60.00 ± 10.00", "−20.00", 3]
    assert "What became of the tasks learned before" in (tmp_path / "report" / "report.md").read_text()
    lines = list(csv.DictReader(tables.as_csv(shown.found).splitlines()))
    assert [line["after_mean"] for line in lines] == ["", "0.6", ""]


def test_commands_say_what_should_have_been_run(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    lines = tmp_path / "list.sh"
    for unclear in ("cd somewhere", "python main.py --lr $lr", "python main.py --lr"):
        lines.write_text(f"python main.py --model online\n{unclear}")
        code, said = command(folder, "--out", tmp_path / "out", "--commands", lines, capsys=capsys)
        assert code == 2 and f"error: {lines}, line 2: " in said.err
    lines.write_text(
        "# the list\n\n"
        "python main.py --model meralg1 --data_file mnist_rotations.pt --memories 500 --lr 3e-2 --cuda no # there\n"
        "python main.py --model=meralg7 --data_file=mnist_rotations.pt --memories=500 --lr=.03 --cuda=no\n"
    )
    assert command(folder, "--out", tmp_path / "out", "--commands", lines, capsys=capsys)[0] == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.findall(r"- mnist_rotations: (\S+) has no runs", text) == ["meralg7"]


def test_spans():
    assert [tables.span(it) for it in ([], [3], [0, 1], [0, 1, 2, 3, 7, 8])] == ["", "3", "0, 1", "0–3, 7, 8"]


# -- the command


def command(*arguments, capsys):
    code = command_line.main([str(it) for it in arguments])
    return code, capsys.readouterr()


def test_user_errors_say_what_to_do(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "half.json").write_text("{")
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk" / "none").write_text("# nothing\n")
    out = ("--out", tmp_path / "out")
    for arguments, words in {
        (tmp_path / "nowhere", *out): "nowhere is no folder or pack; give the folder that main.py saved to",
        (tmp_path / "empty", *out): "holds no finished runs; make some with python main.py --save_path",
        (tmp_path / "junk", *out): "skipped half.json: foreign or half-written",
        (folder, "--out", tmp_path / "file" / "x"): "cannot be written",
        (folder, *out, "--data", "cifar100.pt"): "choose from mnist_permutations.pt, mnist_rotations.pt",
        (folder, *out, "--run", "nobody"): "no counted run has it",
        (folder, *out, "--commands", tmp_path / "nowhere"): "cannot be read",
        (folder, *out, "--commands", tmp_path / "file"): "'x' is no command of main.py; write: python main.py",
        (folder, *out, "--commands", tmp_path / "junk" / "none"): "has no line `python main.py …`; give the list",
        (folder, *out, "--run", "meralg1"): "runs have it",
    }.items():
        code, said = command(*arguments, capsys=capsys)
        assert code == 2 and said.err.startswith("error: ") and words in said.err, said.err
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("flag", ["--learner", "--data", "--memories", "--than", "--out", "--run", "--commands"])
def test_empty_words_are_refused(folder, flag, capsys):
    table = ["table"] if flag == "--than" else []
    with pytest.raises(SystemExit) as stop:
        command_line.main([*table, str(folder), flag, ""])
    assert stop.value.code == 2 and re.search(r"error: .*(has no value|is empty); give", capsys.readouterr().err)


def test_what_is_missing_is_nothing_only_where_a_list_says_what_there_should_be(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [])
    factory.write_json(tmp_path, small())
    for expected, said in ((None, [page.UNLISTED]), ([{"model": "meralg1"}], ["Nothing."])):
        report.make_report(tmp_path, out=tmp_path / "out", expected=expected)
        text = (tmp_path / "out" / "report.md").read_text().partition("## What is missing")[2].partition("##")[0]
        assert text.split("\n- ")[1:] == [f"{line}\n\n" if line == said[-1] else line for line in said]


def test_data_and_run_choose(folder, tmp_path, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "draw_all", lambda found, run: shown.append((found, run)) or [])
    name = small(seed=0, memory=200, data_file="mnist_permutations.pt")["name"]
    code, said = command(folder, "--out", tmp_path, "--data", "mnist_permutations", "--run", name[-12:], capsys=capsys)
    assert code == 0 and "1 runs of 1 experiments" in said.out
    ((found, run),) = shown
    assert run.name == name and {it.data for it in found} == {"mnist_permutations"}


def test_the_default_heat_map_is_the_best_run(folder):
    runs, skipped = read.read_results(folder)
    assert page.open_report(folder, skipped, runs).shown.RA == max(run.RA for run in runs)


def test_json_alone_is_reported_without_torch(tmp_path):
    factory.write_json(tmp_path, small())
    code = "import sys, report; report.read_results(sys.argv[1]); assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, timeout=60)


# -- every figure and table, whatever there is


def one(folder):
    factory.write_json(folder, small())


def one_task(folder):
    for model, seed in (("online", 0), ("gem", 0), ("meralg1", 0), ("meralg1", 1)):
        factory.write_json(folder, factory.result(model, seed=seed, n_tasks=1, examples=300))


def one_evaluation(folder):
    saved = factory.result(n_tasks=1, examples=100)
    for key in ("accuracy_matrix", "baseline", "stats"):
        del saved[key]
    factory.write_json(folder, saved | {key: saved[key][:1] for key in ("result_t", "result_a", "examples_seen")})


def no_evaluations_on_the_way(folder):
    for model in ("online", "eralg4"):
        factory.write_json(folder, small(model, log_every=10_000))


def no_times(folder):
    for model in ("online", "eralg4"):
        for seed in range(3):
            saved = small(model, seed=seed)
            del saved["seconds"], saved["examples_seen"]
            factory.write_json(folder, saved)


def no_memory(folder):
    factory.write_json(folder, small("online"))


def only_texts(folder):
    for model in ("online", "gem"):
        factory.write_txt(folder, small(model))


def only_the_original(folder):
    path = factory.write_pt(folder, small("gem", memory=200))
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        *parts, one_liner, args = torch.load(path)
    torch.save((*parts, one_liner.rpartition("#")[0], args), path)


def equal_values(folder):
    for model in ("online", "eralg4"):
        for seed in range(3):
            factory.write_json(folder, small(model) | {"seed": seed, "name": f"{model}{seed}"})


def strangers(folder):
    """More learners than there are colours."""
    for place in range(15):
        factory.write_json(folder, small("meralg1") | {"model": f"net{place}", "name": f"net{place}"})


CASES = (one, one_task, one_evaluation, no_evaluations_on_the_way, no_times, no_memory, only_texts, only_the_original,
         equal_values, strangers)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_figure_and_table_has_something_to_say(tmp_path, case, monkeypatch):
    """Nothing warns; what cannot be drawn is said; the pages have all that was drawn."""
    monkeypatch.setattr(figures, "FORMATS", {"svg": {}, "png": {"dpi": 30}})
    case(tmp_path)
    shown, paths = report.make_report(tmp_path)
    assert shown.found and not shown.skipped
    parsed = Page((tmp_path / "report" / "report.html").read_text())
    markdown = (tmp_path / "report" / "report.md").read_text()
    drawn = {path.stem for path in paths if path.suffix == ".png"}
    per_data = ("bars", "first_task", "seen_tasks", "task_curves")
    assert {name for name in parsed.ids if re.match("|".join((*per_data, "memory", "seconds", "accuracy")), name)} == {
        *(f"{name}_mnist_rotations" for name in per_data), "memory", "seconds", "accuracy_matrix",
    }  # fmt: skip
    assert sum(tag == "img" for tag, _ in parsed.tags) == len(drawn) == len(re.findall(r"\]\(figures/", markdown))
    for name, sentence, missing in (
        ("seconds", "No run's time is known.", case in (no_times, only_texts, only_the_original)),
        ("memory", "No learner here has a memory whose size is known.", case in (no_memory, only_texts)),
    ):
        assert (name in drawn, sentence in parsed.text, sentence in markdown) == (not missing, missing, missing)
    assert not re.search(r"\bnan\b|\bNone\b", parsed.text + markdown)


def test_figures_and_tables_of_nothing():
    drawings = figures.draw_all([], None)
    assert {it.name for it in drawings} == {"memory", "seconds", "accuracy_matrix"}
    for function in (figures.bars, figures.first_task, figures.seen_tasks, figures.task_curves):
        drawings.append(figures.draw((function, "mnist", [], {})))
    assert all(it.svg is None and it.caption.endswith(".") for it in drawings)
    nothing = page.Report("x", [], [], [], None, None)
    for text in (page.as_html(nothing, drawings), page.as_markdown(nothing, drawings)):
        assert "0 runs of 0 experiments" in text
    assert not nothing.results("mnist").rows and not nothing.compared("mnist") and not nothing.earlier("mnist").rows
    assert len(tables.as_csv([]).splitlines()) == 1


# -- the report's files


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.text, self.stack = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_no_other_file_and_no_network(made):
    out, _ = made
    text = (out / "report.html").read_text()
    assert not re.search(r"https?:|[\"'(= ]//[a-z]|@import|url\((?!#)", text)
    parsed = Page(text)
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base") and (tag == "img" or "src" not in attrs)
        for key, value in attrs.items():
            assert not key.startswith("on")
            if key in ("href", "src"):
                assert value.startswith(("#", "data:image/svg+xml;base64,")), value
    assert [attrs for tag, attrs in parsed.tags if tag == "script"] == [{}]
    assert len(parsed.ids) == len(set(parsed.ids))
    links = {attrs["href"][1:] for tag, attrs in parsed.tags if tag == "a"}
    assert links <= set(parsed.ids)


def test_the_page_has_every_section_figure_and_run(made, folder):
    out, made_report = made
    text = (out / "report.html").read_text()
    parsed = Page(text)
    names = [
        *(f"{kind}_{data}" for data in ("mnist_rotations", "mnist_permutations")
          for kind in ("bars", "first_task", "seen_tasks", "task_curves")),
        "memory", "seconds", "accuracy_matrix",
    ]  # fmt: skip
    assert {*names, "data-1", "data-2", "run", "missing", "not-counted"} <= set(parsed.ids)
    for name in names:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert sum(tag == "img" for tag, _ in parsed.tags) == len(names)
    for run in made_report.runs:
        assert run.path in parsed.text
    for words in (
        "0123456789ab", "torch 2.13.0", "anvil", "native (", "uniform (", "the original", "qp_repairs", "Seeds",
        "meralg6 lr 0.03 memories 200 has no runs", "gem, 200 memories has seeds 0, 1, lacks 2",
        "too few seeds", "Welch", "Holm", "<img src=x onerror=alert(1)>|.json: foreign or half-written",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", parsed.text), words
    assert "<img src=x" not in text
    identity = small()["data"]["identity"]
    assert identity in text and identity in (out / "report.md").read_text()


def test_markdown_says_the_same_and_survives_odd_names(made):
    out, made_report = made
    text = (out / "report.md").read_text()
    for heading in ("mnist_rotations", "What was run", "What is missing", "What is not counted"):
        assert f"\n## {heading}\n" in text
    assert r"\<img src=x onerror=alert(1)\>\|.json: foreign" in text
    tables_ = [line for line in text.splitlines() if line.startswith("|")]
    assert sum(f"| {it.label} | {it.memory_text} |" in text for it in made_report.found) == len(made_report.found)
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables_]
    assert set(widths) == {11, 12}  # the results on one data set have settings; so many columns have comparisons, too
    for link in re.findall(r"\]\((figures/.*?)\)", text):
        assert (out / link).is_file()


def test_every_colour_of_a_figure_has_one_for_the_dark(made):
    """But data images and the heat map's black and white. Each picture is whole, and alone."""
    out, _ = made
    images = [attrs for tag, attrs in Page((out / "report.html").read_text()).tags if tag == "img"]
    for attrs in images:
        svg = base64.b64decode(attrs["src"].split(",")[1]).decode()
        ElementTree.fromstring(svg)
        drawn = svg.split("</style>", 1)[1]
        assert not re.search(r"(href|src)=\"(?!#|data:image/png;base64,)", drawn)
        colours = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'"data:image[^"]*"', "", drawn)))
        assert colours <= figures.IN_THE_DARK.keys() | {"#ffffff", "#000000"} and colours & figures.IN_THE_DARK.keys()
        assert attrs["alt"]


def test_a_second_report_replaces_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_all", lambda found, run: [figures.draw((figures.accuracy_matrix, None, run))])
    factory.write_json(tmp_path, small(seed=0))
    _, first = report.make_report(tmp_path)
    factory.write_json(tmp_path, small(seed=1))
    again, second = report.make_report(tmp_path)
    assert first == second and len(again.runs) == 2 and not again.skipped  # its own files are no results
    assert "2 runs of 1 experiments" in (tmp_path / "report" / "report.md").read_text()
    assert sorted(it for it in (tmp_path / "report").rglob("*") if it.is_file()) == sorted(second)


# -- colours


def linear(colour):
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(light):
    """Ottosson 2020; Euclidean distance is near to what is seen."""
    to_cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ light)


# Machado, Oliveira and Fernandes 2009, severity 1
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("palette, paper", [(figures.LIGHT, "#ffffff"), (figures.DARK, "#15181d")])
def test_colours_can_be_told_apart_by_all_eyes(palette, paper):
    weights = np.array([0.2126, 0.7152, 0.0722])
    for colour in palette:
        low, high = sorted((linear(colour) @ weights, linear(paper) @ weights))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    for eye, matrix in EYES.items():
        seen = [oklab(np.clip(np.array(matrix) @ linear(colour), 0, 1)) for colour in palette]
        for i in range(len(seen)):
            for j in range(i):
                assert np.linalg.norm(seen[i] - seen[j]) > 0.06, (eye, palette[i], palette[j])


def test_all_learners_differ_in_colour_marker_and_line():
    """The paper's first, then those of README's second table, the rest, and the upper bound."""
    readme = (ROOT / "README.md").read_text().split("\n## ")[2]  # One experiment
    listed = [name for cell in re.findall(r"^\| ([a-z0-9_, ]+) \|", readme, re.M) for name in cell.split(", ")]
    assert [name for name in tables.ORDER if name in listed] == listed
    assert {*tables.ORDER} == {*candidates()} and len(tables.PAPER) == 10
    look = figures.looks([SimpleNamespace(label=name, model=name) for name in tables.ORDER])
    assert len({it["color"] for it in look.values()}) == len({it["marker"] for it in look.values()}) == len(look) == 20


def test_learners_too_many_for_a_panel_stand_in_two_groups(monkeypatch):
    monkeypatch.setattr(factory, "KINDS", factory.KINDS | dict.fromkeys(tables.AFTER, (0.8, 0.4, 0.8)))
    runs = [small(name, memory=200) for name in tables.ORDER]
    for it in runs[10:]:
        it["science"]["memories"] = 200
    found, _ = tables.experiments([read.run_of(it, it["name"], it["name"]) for it in runs])
    figure, *_ = figures.seen_tasks(found, figures.looks(found))
    drawn = {axis.get_title(): len(axis.lines) for axis in figure.axes}
    assert drawn == {"200 memories · the paper's learners": 10, "200 memories · what came after": 10}
    few = [it for it in found if it.model in tables.PAPER or it.model == "agem"]
    assert [len(axis.lines) for axis in figures.seen_tasks(few, figures.looks(found))[0].axes] == [11]
    figure, _ = figures.task_curves(found, figures.looks(found))
    titles = [axis.get_title() for axis in figure.axes]
    assert sorted(titles) == sorted(it.label + (" · 200" if it.memory else "") for it in found)


def test_learners_differ_without_colour(folder):
    found, _, _ = found_in(folder)
    look = figures.looks(found)
    assert len({(it["marker"], it["fillstyle"]) for it in look.values()}) == len(look)
    assert look["gem"]["color"] == look["gem (original) †"]["color"]
    assert look == {**look, **figures.looks([it for it in found if it.data == "mnist_rotations"])}


# -- in a browser


def browse(page_path, tmp_path, *options):
    """Runs headless Chromium on a page; returns what it prints."""
    arguments = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars"
    ).split()
    profile = tmp_path / f"profile{time.monotonic_ns()}"
    done = subprocess.run(
        [CHROMIUM, *arguments, f"--user-data-dir={profile}", *options, page_path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_opens_light_and_dark(made, tmp_path):
    from PIL import Image

    out, _ = made
    for scheme, dark in (("light", False), ("dark", True)):
        shot = tmp_path / f"{scheme}.png"
        setting = f"--blink-settings=preferredColorScheme={int(not dark)}"
        browse(out / "report.html", tmp_path, f"--screenshot={shot}", "--window-size=1200,3000", setting)
        with Image.open(shot) as picture:
            grey = np.asarray(picture.convert("L"))
            colours = len(set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7])))
        assert grey.shape == (3000, 1200)
        assert (np.median(grey) < 60) == dark and grey.std() > 8
        assert colours > 100  # text and lines are drawn, not boxes alone
        print(f"screenshot: {shot}")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_tables_sort_in_the_browser(made, tmp_path):
    """A click sorts numbers from the largest, a second one from the smallest."""
    out, _ = made
    script = """<script>addEventListener("load", () => {
      const table = document.querySelector('[aria-label="Results on mnist_rotations"] table');
      const button = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "RA"), column = button.cellIndex;
      const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.v).join(" ");
      button.querySelector("button").click();
      const down = values() + "|" + button.getAttribute("aria-sort");
      button.querySelector("button").click();
      document.title = [button.textContent, down, values() + "|" + button.getAttribute("aria-sort")].join("#");
    });</script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text((out / "report.html").read_text().replace("</body>", script))
    title = re.search(r"<title>(RA#.*?)</title>", browse(copy, tmp_path, "--dump-dom"))[1]
    _, down, up = title.split("#")
    values, direction = down.split("|")
    numbers = [float(value) for value in values.split()]
    assert direction == "descending" and numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 3
    values, direction = up.split("|")
    assert direction == "ascending" and [float(value) for value in values.split()] == sorted(numbers)
