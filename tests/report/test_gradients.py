"""--alignment in the report: real runs against plain loops, through packs; figures; what is no measurement."""

import csv
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import result_factory as factory

import report
from report import figures, pack, read, tables

NEW = ("cosine_between", "cosine_within", "inner_between", "inner_within")


@pytest.fixture
def folder(task_file, run_main, tmp_path):
    """Two seeds of a learner with its gradients compared, and a run without."""
    place, name = task_file(n_tasks=3)
    shared = ("--data_path", place, "--data_file", name, "--n_hiddens", 6, "--log_every", 5, "--lr", 0.1)
    for seed, more in ((1, ("--alignment", 4)), (2, ("--alignment", 4)), (3, ())):
        memory = ("--model", "eralg4", "--memories", 6) if more else ("--model", "online")
        run_main(*memory, *shared, "--seed", seed, *more, save_path=tmp_path / "results")
    return tmp_path / "results"


def saved_in(folder):
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {it["name"]: it for it in found}


def test_real_runs_are_read_drawn_and_packed(folder, tmp_path):
    saved = saved_in(folder)
    with_it = [it for it in saved.values() if it["alignment"]]
    assert len(with_it) == 2
    pack.pack([folder], tmp_path / "all.jsonl.gz")
    for place in (folder, tmp_path / "all.jsonl.gz"):
        runs, skipped = read.read_results(place)
        assert len(runs) == 3 and not skipped
        for run in runs:
            told = saved[run.name]["alignment"]
            if told is None:
                assert run.inner is run.cosine is run.cosines is None and run.cosine_between is None
                continue
            for kind in ("inner", "cosine"):
                mine = getattr(run, kind)
                wanted = [one[kind] for one in told["measured"]]
                assert mine.shape == (len(run.position), 2) == (len(wanted), 2)
                for row, pair in zip(mine.tolist(), wanted, strict=True):
                    for value, number in zip(row, pair, strict=True):
                        assert math.isnan(value) if number is None else value == number
                ends = (getattr(run, f"{kind}_between"), getattr(run, f"{kind}_within"))
                assert list(ends) == wanted[-1]
            assert run.cosines.tolist() == told["latest"]["cosine"]
        assert math.isnan(runs[0].cosine[0, 0]) and not math.isnan(runs[0].cosine[-1, 0])  # one task seen, and three
        _, paths = report.make_report(place, out=tmp_path / "out")
        rows = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
        by_learner = {row["learner"]: row for row in rows}
        assert all(by_learner["online"][f"{name}_mean"] == "" for name in NEW)
        for name in NEW:
            kind, column = name.split("_")[0], "between within".split().index(name.split("_")[1])
            values = [it["alignment"]["measured"][-1][kind][column] for it in with_it]
            assert float(by_learner["eralg4"][f"{name}_mean"]) == pytest.approx(sum(values) / 2, rel=1e-4)
            spread = abs(values[0] - values[1]) / math.sqrt(2)
            assert float(by_learner["eralg4"][f"{name}_std"]) == pytest.approx(spread, rel=1e-3, abs=1e-9)
        assert {path.name for path in paths} >= {"alignment_tiny.png", "alignment_matrix_tiny.pdf"}
        for page in ("report.html", "report.md"):
            text = (tmp_path / "out" / page).read_text()
            assert "Loss gradients after the last task of tiny" in text and "alignment_matrix_tiny.png" in text


def test_curves_and_matrices_show_the_means_over_seeds(folder):
    (it,) = [it for it in tables.experiments(read.read_results(folder)[0])[0] if it.model == "eralg4"]
    told = [one["alignment"] for one in saved_in(folder).values() if one["alignment"]]
    figure = figures.alignment([it], figures.looks([it]))
    panels = [axis for axis in figure.axes if axis.lines]
    for axis, (kind, column) in zip(panels, (("cosine", 0), ("cosine", 1), ("inner", 0)), strict=True):
        rows = [[one[kind][column] for one in alignment["measured"]] for alignment in told]
        wanted = [math.nan if None in pair else sum(pair) / 2 for pair in zip(*rows, strict=True)]
        np.testing.assert_allclose(axis.lines[0].get_ydata(), wanted, rtol=1e-6)
        assert axis.lines[0].get_xdata()[-1] == 3
    figure = figures.alignment_matrix([it])
    (image,) = [image for axis in figure.axes for image in axis.images]
    for a in range(3):
        for b in range(3):
            mean = sum(alignment["latest"]["cosine"][a][b] for alignment in told) / 2
            assert image.get_array()[a, b] == pytest.approx(mean, rel=1e-6)
    apart = [abs(image.get_array()[a, b]) for a in range(3) for b in range(3) if a != b]
    assert image.get_clim() == pytest.approx((-max(apart), max(apart)))


@pytest.mark.parametrize("n_seen", [0, 1])
def test_where_nothing_could_be_compared_the_figures_are_still_whole(n_seen):
    """One example a task has no pairs within it; one task none between."""
    saved = factory.result("eralg4", memory=200, n_tasks=4 - 3 * n_seen, examples=300)
    n, n_tasks = len(saved["result_t"]), len(saved["baseline"])
    pair = [None, 0.5] if n_seen else [0.5, None]
    latest = [[pair[a == b] for b in range(n_tasks)] for a in range(n_tasks)]
    measured = [{"inner": pair, "cosine": pair}] * n
    saved["alignment"] = {"measured": measured, "latest": {"tasks": [0] * n_tasks, "inner": latest, "cosine": latest}}
    run = read.run_of(saved, "it", "it")
    assert [run.cosine_between, run.cosine_within] == pair
    drawings = figures.draw_all(tables.experiments([run])[0], run)
    drawn = {it.name: it for it in drawings if it.name.startswith("alignment")}
    assert set(drawn) == {"alignment_mnist_rotations", "alignment_matrix_mnist_rotations"}
    for it in drawn.values():
        ElementTree.fromstring(it.svg)


def changed(**parts):
    return lambda told: told | parts


JUNK = {
    "no dictionary": lambda told: [1, 2],
    "a word": lambda told: "no",
    "empty": lambda told: {},
    "no evaluations": changed(measured=[]),
    "one evaluation less": lambda told: told | {"measured": told["measured"][1:]},
    "one number": changed(measured=[{"inner": [1.0], "cosine": [1.0]}]),
    "words": lambda told: told | {"measured": [{"inner": ["1", "1"], "cosine": [0.1, 0.1]}] * len(told["measured"])},
    "no cosine": lambda told: told | {"measured": [{"inner": [0.1, 0.1], "cosine": [2, 0]}] * len(told["measured"])},
    "not finite": lambda told: (
        told | {"measured": [{"inner": [math.inf, 0.1], "cosine": [0.1, 0.1]}] * len(told["measured"])}
    ),
    "beyond all floats": lambda told: (
        told | {"measured": [{"inner": [10**400, 0.1], "cosine": [0.1, 0.1]}] * len(told["measured"])}
    ),
    "no matrix": changed(latest=None),
    "fewer tasks": changed(latest={"tasks": [0], "inner": [[0.1]], "cosine": [[0.1]]}),
    "ragged": changed(latest={"tasks": [0, 1, 2], "inner": [[0.1]], "cosine": [[0.1], [0.1, 0.2], []]}),
    "a matrix of words": changed(latest={"tasks": [0, 1, 2], "inner": [], "cosine": ["abc", "abc", "abc"]}),
}


@pytest.fixture(scope="module")
def one_run():
    """A result() of four tasks, with an alignment as a run saves it."""
    saved = factory.result("eralg4", memory=200, n_tasks=4, examples=300)
    return saved | {"alignment": factory.alignment(saved["result_t"])}


@pytest.mark.parametrize("name", JUNK)
def test_what_is_no_measurement_is_named_and_not_counted(name, one_run, tmp_path):
    factory.write_json(tmp_path, one_run)
    assert len(read.read_results(tmp_path)[0]) == 1
    odd = one_run | {"alignment": JUNK[name](one_run["alignment"]), "name": one_run["name"][:-4] + "beef"}
    factory.write_json(tmp_path, odd)
    runs, skipped = read.read_results(tmp_path)
    assert [run.name for run in runs] == [one_run["name"]]
    assert [it.path for it in skipped] == [f"{odd['name']}.json"] and "alignment is " in skipped[0].reason
