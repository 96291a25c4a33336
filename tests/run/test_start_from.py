"""--start_from: the learner of a finished run goes on with further tasks, as one that never stopped would."""

import gzip
import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import torch
from conftest import toy_examples
from runs import WAYS, a_signal, after, go_fixture, learners, place, result_in, words_of  # noqa: F401

from run import settings
from run.experience import seed_everything
from run.stream import Stream
from tasks.files import load_tasks

NATIVE, NATIVE_SHUFFLE, REFERENCE = WAYS[:3]
GOES_ON = [name for name in learners() if name != "independent"]
SECOND = ("--data_file", "more.pt", "--save_path", "second/", "--seed", 5, "--log_every", 3)


def more_tasks(folder, n_tasks=2, n_inputs=12, n_classes=3):
    """Writes further tasks into the folder, as data/more.pt; returns it."""
    generator = np.random.default_rng(9)
    half = [[f"further {t}", *toy_examples(7, n_inputs, n_classes, generator)] for t in range(n_tasks)]
    torch.save([half, half], folder / "data" / "more.pt")
    return folder


def first_run(go, folder, *words):
    """Makes it; returns the path of its .pt."""
    found = go(folder, *words)
    assert found.code == 0, found.err
    return f"results/{result_in(folder).name}.pt"


def literally(words, first, second):
    """What the learner's literal loop (literal.py) comes to on both streams: weights, by name.

    first, second   (tasks, seed) of the streams; at the second one everything is seeded anew, as for a run of its own
    """
    parsed = settings.parse(words)
    flags = SimpleNamespace(**parsed.as_dict())
    sizes = first[0].n_inputs, first[0].n_outputs, len(first[0].tasks) + len(second[0].tasks)

    def streamed():
        start = 0
        for tasks, seed in (first, second):
            seed_everything(seed)
            stream = Stream([len(task.train) for task in tasks.tasks], mixed=parsed.learner.mixes_tasks)
            if start == 0:
                yield None  # the loop draws its first weights here
            for batch in stream.minibatches():
                train = tasks.tasks[batch.t].train
                yield start + batch.t, train.inputs(batch.indices), torch.from_numpy(train.labels[batch.indices])
            start += len(tasks.tasks)

    stream = streamed()
    next(stream)
    return literal.LEARNERS[flags.model](stream, sizes, flags)


@pytest.mark.parametrize("name", sorted(literal.LEARNERS.keys() - {"independent", "taskinput"}))
def test_equals_a_literal_loop_that_never_stopped(name, go, tmp_path, load_result):
    """(taskinput's further input layers come from the second run's random stream: see test_three_runs_in_a_row)"""
    folder = more_tasks(place(tmp_path / "run"))
    words = words_of(name, REFERENCE)
    result = first_run(go, folder, *words)
    found = go(folder, *words, *SECOND, "--start_from", result)
    assert found.code == 0, found.err
    (path,) = folder.glob("second/*.pt")
    result_t, result_a, weights, *_ = load_result(path)
    assert result_a.shape[1] == 2 and result_t.tolist() == [0] * 4 + [1] * 3
    wanted = literally(words, *[(load_tasks("data", file), seed) for file, seed in (("tiny.pt", 0), ("more.pt", 5))])
    assert weights.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(weights[key], wanted[key], rtol=0, atol=1e-6)


# the tasks known from before


def earlier_in(path):
    return json.loads(path.read_text())["earlier"]


@pytest.mark.parametrize("way", (NATIVE, REFERENCE), ids="-".join)
@pytest.mark.parametrize("name", GOES_ON)
def test_what_is_forgotten_of_earlier_tasks_is_seen(name, way, go, tmp_path, load_result):
    folder = more_tasks(place(tmp_path / "run"))
    result = first_run(go, folder, *words_of(name, way))
    found = go(folder, *words_of(name, way, *SECOND, "--start_from", result))
    assert found.code == 0, found.err
    (path,) = folder.glob("second/*.json")
    earlier, ended = earlier_in(path), load_result(folder / result)[1][-1]
    assert earlier["tasks"] == [0, 1, 2]
    assert earlier["result_a"][0] == pytest.approx(ended.tolist()) and len(earlier["result_a"]) == 7
    assert earlier["RA_before"] == pytest.approx(float(ended.mean()))
    last = earlier["result_a"][-1]
    assert earlier["RA_after"] == pytest.approx(sum(last) / 3)
    wanted = f"tasks known from before: RA {earlier['RA_before']:.3f}, now {earlier['RA_after']:.3f}"
    assert wanted in found.err
    # the state goes on: it is what its own weights get right
    (further,) = folder.glob("second/*.pt")
    again = go(folder, *words_of(name, way, "--save_path", "third/", "--start_from", further, "--lr", 0))
    assert again.code == 0, again.err
    (path,) = folder.glob("third/*.json")
    assert earlier_in(path)["tasks"] == [0, 1, 2, 3, 4] and earlier_in(path)["result_a"][0][:3] == pytest.approx(last)
    assert [run["data_file"] for run in json.loads(path.read_text())["history"]] == ["tiny.pt", "more.pt"]


def test_earlier_tasks_that_are_gone_are_named_and_can_be_given(go, tmp_path):
    folder = more_tasks(place(tmp_path / "run"))
    words = words_of("eralg4", NATIVE)
    result = first_run(go, folder, *words)
    words += [*map(str, SECOND), "--start_from", result]
    (folder / "data" / "tiny.pt").rename(folder / "elsewhere.pt")
    found = go(folder, *words)
    assert found.code == 0 and "note: what is forgotten of tiny.pt, learned before, is not seen: " in found.err
    (path,) = folder.glob("second/*.json")
    assert earlier_in(path) is None
    path.unlink()
    found = go(folder, *words, "--with_tasks_of", "./elsewhere.pt")
    assert found.code == 0 and "is not seen" not in found.err, found.err
    (path,) = folder.glob("second/*.json")
    assert earlier_in(path)["tasks"] == [0, 1, 2]
    found = go(folder, *words, "--with_tasks_of", "data/more.pt")
    assert found.code == 2 and "has not learned these tasks; it learned tiny.pt" in found.err
    found = go(folder, *words, "--with_tasks_of", "nowhere/tiny.pt")
    assert found.code == 2 and "error: --with_tasks_of nowhere/tiny.pt: " in found.err


def test_a_flag_that_the_learner_does_not_read_refuses_nothing(go, tmp_path):
    folder = more_tasks(place(tmp_path / "run"))
    result = first_run(go, folder, *words_of("online", NATIVE))
    found = go(folder, *words_of("online", NATIVE, *SECOND, "--start_from", result, "--memories", 8))
    assert found.code == 0, found.err


@pytest.mark.parametrize("ways", [(NATIVE_SHUFFLE, REFERENCE), (REFERENCE, NATIVE_SHUFFLE)], ids=["there", "back"])
@pytest.mark.parametrize("name", GOES_ON)
def test_goes_on_on_the_other_engine(name, ways, go, tmp_path, load_result):
    """Up to rounding what it comes to on the engine where it began."""
    folder = more_tasks(place(tmp_path / "run"))
    result, weights = first_run(go, folder, *words_of(name, ways[0])), []
    for way in ways:
        found = go(folder, *words_of(name, way, *SECOND, "--start_from", result, "--save_path", f"{way[0]}/"))
        assert found.code == 0, found.err
        (path,) = folder.glob(f"{way[0]}/*.pt")
        weights.append(load_result(path)[2])
    torch.testing.assert_close(*weights, rtol=0, atol=1e-3)


def test_the_untrained_row_is_the_earlier_learner(go, tmp_path, load_result):
    """On the very tasks that it learned, with memory: it begins where it ended."""
    folder = place(tmp_path / "run")
    result = first_run(go, folder, *words_of("meralg1", NATIVE))
    words = words_of("meralg1", NATIVE, "--save_path", "second/", "--start_from", result, "--lr", 0)
    assert go(folder, *words).code == 0
    ended = load_result(folder / result)[1][-1]
    (path,) = folder.glob("second/*.pt")
    assert all(torch.equal(row, ended) for row in load_result(path)[1])


def test_three_runs_in_a_row(go, tmp_path, load_result):
    folder = more_tasks(place(tmp_path / "run"))
    words = words_of("taskinput", REFERENCE)
    result = first_run(go, folder, *words)
    assert go(folder, *words, *SECOND, "--start_from", result).code == 0
    (second,) = folder.glob("second/*.pt")
    assert go(folder, *words, "--start_from", second, "--save_path", "third/").code == 0
    (third,) = folder.glob("third/*.pt")
    known, weights = load_result(second)[2], load_result(third)[2]
    assert {name.split(".")[1] for name in weights if name.startswith("i_layer")} == set("01234567")
    assert all(torch.equal(weights[f"i_layer.{t}.weight"], known[f"i_layer.{t}.weight"]) for t in range(5))


def test_fewer_classes_are_fine_and_larger_batches_are_not(go, tmp_path, load_result):
    folder = more_tasks(place(tmp_path / "run"), n_classes=2)
    words = words_of("eralg4", NATIVE, "--batch_size", 4)
    result = first_run(go, folder, *words)
    found = go(folder, *words, *SECOND, "--start_from", result, "--batch_size", 2)
    assert found.code == 0, found.err
    (path,) = folder.glob("second/*.pt")
    assert load_result(path)[2]["net.net.4.weight"].shape == (3, 6)
    found = go(folder, *words, *SECOND, "--start_from", result, "--batch_size", 5)
    assert found.code == 2
    assert f"error: --start_from {result}: its minibatches had at most 4 examples; give --batch_size 4" in found.err


def test_stopped_and_resumed(go, tmp_path):
    """A run that started from another can be interrupted like any."""
    words, files = words_of("gem", NATIVE, *SECOND), []
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        result = first_run(go, more_tasks(place(folder)), *words_of("gem", NATIVE))
        shutil.move(folder / "results", folder / "first")
        start = ["--start_from", "first/known.pt"]
        for path in folder.glob("first/*"):
            path.rename(path.with_stem("known"))
        if folder.name == "parts":
            with after(9, a_signal(signal.SIGTERM)):
                path = re.search(r"--resume (\S+)$", go(folder, *words, *start).err, re.MULTILINE)[1]
            assert go(folder, "--resume", path).code == 0
        else:
            assert go(folder, *words, *start).code == 0
        assert result.endswith(".pt")
        files.append(result_in(folder, "second").files)
    assert files[0] == files[1]


# refusals


def test_independent_networks_cannot_go_on(go, tmp_path):
    folder = more_tasks(place(tmp_path / "run"))
    for n_hiddens in (9, 1000):
        words = words_of("independent", NATIVE, "--n_hiddens", n_hiddens)
        result = first_run(go, folder, *words)
        found = go(folder, *words, *SECOND, "--start_from", result)
        assert found.code == 2 and not list(folder.glob("second/*"))
        assert (
            f"error: --start_from {result}: the networks of independent depend on the number of tasks, so it "
            "cannot go on "
            "from 3 to 5; choose another --model" in found.err
        )
        shutil.rmtree(folder / "results")


@pytest.mark.parametrize(
    "words,text",
    [
        (("--model", "eralg5"), "--model was eralg4, now eralg5"),
        (("--n_hiddens", 7, "--n_layers", 1), "--n_hiddens was 6, now 7; --n_layers was 2, now 1"),
        (("--memories", 8), "--memories was 7, now 8"),
    ],
)
def test_other_flags_are_refused(words, text, go, tmp_path):
    folder = more_tasks(place(tmp_path / "run"))
    result = first_run(go, folder, *words_of("eralg4", NATIVE))
    found = go(folder, *words_of("eralg4", NATIVE, *SECOND, "--start_from", result, *words))
    assert found.code == 2 and not list(folder.glob("second/*"))
    assert f"error: --start_from {result}: the learner does not fit ({text}); give what it had" in found.err


@pytest.mark.parametrize(
    "sizes,text",
    [
        ({"n_inputs": 13}, "its tasks had 12 inputs, these have 13"),
        ({"n_classes": 4}, "it knows 3 classes, these tasks have 4"),
    ],
)
def test_other_data_are_refused(sizes, text, go, tmp_path):
    folder = more_tasks(place(tmp_path / "run"), **sizes)
    result = first_run(go, folder, *words_of("eralg4", NATIVE))
    found = go(folder, *words_of("eralg4", NATIVE, *SECOND, "--start_from", result))
    assert found.code == 2 and f"error: --start_from {result}: the learner does not fit ({text})" in found.err


def test_classes_that_belong_to_tasks_do_not_mix_with_others(go, tmp_path):
    """The same images with and without class ranges."""
    folder = more_tasks(
        place(tmp_path / "run", n_tasks=2, n_train=2, n_test=2, n_inputs=3072, n_classes=2), n_inputs=3072
    )
    content = torch.load(folder / "data" / "tiny.pt", weights_only=True)
    for half in content:
        half[1][2] += 2
    torch.save(content, folder / "data" / "tiny.pt")
    words = ["--model", "online", "--data_path", "data", "--threads", 1, "--n_layers", 0, "--network", "mlp"]
    assert go(folder, *words, "--data_file", "tiny.pt").code == 0
    (result,) = folder.glob("results/*.pt")
    found = go(folder, *words, *SECOND, "--start_from", result)
    assert found.code == 2 and "(only one of them has classes that belong to tasks)" in found.err


def test_images_go_on_with_further_classes(go, tmp_path, load_result):
    """CIFAR-100 in two halves: the second one's classes come after those of the first."""
    folder = place(tmp_path / "run", n_tasks=2, n_train=2, n_test=2, n_inputs=3072, n_classes=2)
    halves = torch.load(folder / "data" / "tiny.pt", weights_only=True)
    for half in halves:
        half[1][2] += 2
        half[0][2][:] = half[0][2]
    torch.save(halves, folder / "data" / "cifar100.pt")
    words = ["--model", "online", "--data_path", "data", "--data_file", "cifar100.pt", "--threads", 1]
    assert go(folder, *words).code == 0
    (result,) = folder.glob("results/*.pt")
    found = go(folder, *words, "--save_path", "second/", "--start_from", result)
    assert found.code == 0, found.err
    (path,) = folder.glob("second/*.pt")
    assert load_result(path)[1].shape[1] == 2


def test_what_is_no_result(go, tmp_path):
    folder = place(tmp_path / "run")
    result = first_run(go, folder, *words_of("online", NATIVE))
    state = folder / Path(result).with_suffix(".state")
    whole, words = state.read_bytes(), words_of("online", NATIVE)
    for path, text in [
        ("nowhere.pt", "nowhere.state is not beside it; give the .pt of a run that kept its state"),
        ("data/tiny.pt", "tiny.state is not beside it"),
        ("", "is no learner's state (it is no file)"),
        ("/", "is no learner's state (it is no file)"),
        ("..", "...state is not beside it"),
    ]:
        found = go(folder, *words, f"--start_from={path}")
        assert found.code == 2 and f"error: --start_from {path}: " in found.err and text in found.err, found.err
    for content in (
        b"",
        b"text",
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:100] + b"x" + whole[101:],
        gzip.compress(b"text"),
    ):
        state.write_bytes(content)
        found = go(folder, *words, "--start_from", result)
        assert found.code == 2 and f"{state.name} is no learner's state (" in found.err, found.err


def test_keep_state_no(go, tmp_path):
    folder = place(tmp_path / "run")
    assert go(folder, *words_of("online", NATIVE, "--keep_state", "no")).code == 0
    assert {path.suffix for path in folder.glob("results/*")} == {".json", ".pt", ".txt"}
