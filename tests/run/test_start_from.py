"""--start_from: the learner of a finished run goes on with further tasks, as one that never stopped would."""

import gzip
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_examples
from runs import WAYS, a_signal, after, go_fixture, learners, place, result_in, words_of  # noqa: F401

from run import settings
from run.evaluation import n_scored
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
    """What one learner comes to that learns both streams: (weights, accuracies on the further tasks).

    first, second   (tasks, seed) of the streams; every part is seeded, streamed and drawn as a run of its own
    """
    args = settings.parse(words)
    n_known = len(first[0].tasks)
    rows, learner = [], None
    for (tasks, seed), start in ((first, 0), (second, n_known)):
        seed_everything(seed)
        stream = Stream([len(task.train) for task in tasks.tasks])
        chosen, _ = settings.resolve(args.changed(seed=seed), tasks)
        own = settings.learner_args(chosen, tasks, minibatch_slots=1)
        n_tasks = n_known + len(second[0].tasks)
        fresh = args.learner(tasks.n_inputs, first[0].n_outputs, n_tasks, own)
        if learner is None:
            learner = fresh
            # where the number of tasks decides the initial weights of others, those of the first run
            seed_everything(seed)
            Stream([len(task.train) for task in tasks.tasks])
            known = args.learner(tasks.n_inputs, tasks.n_outputs, n_known, own)
            learner.load_state_dict(known.state_dict())
            learner.engine.draws.setstate(known.engine.draws.getstate())
        else:
            learner.engine.draws.setstate(fresh.engine.draws.getstate())
            new = {
                name: value for name, value in fresh.state_dict().items() if re.match(rf"i_layer\.[{start}-9]\.", name)
            }
            learner.load_state_dict(learner.state_dict() | new)
        for batch in stream.minibatches():
            task = tasks.tasks[batch.t].train
            learner.observe(task.inputs(batch.indices), start + batch.t, torch.from_numpy(task.labels[batch.indices]))
    for t, task in enumerate(second[0].tasks):
        n = n_scored(len(task.test))
        right = learner(task.test.inputs(slice(0, n)), n_known + t).argmax(1) == torch.from_numpy(task.test.labels[:n])
        rows.append(int(right.sum()) / len(task.test))
    return learner.state_dict(), rows


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", GOES_ON)
def test_equals_a_learner_that_never_stopped(name, way, go, tmp_path, load_result):
    folder = more_tasks(place(tmp_path / "run"))
    result = first_run(go, folder, *words_of(name, way))
    found = go(folder, *words_of(name, way, *SECOND, "--start_from", result))
    assert found.code == 0, found.err
    (path,) = folder.glob("second/*.pt")
    result_t, result_a, weights, *_ = load_result(path)
    assert result_a.shape[1] == 2 and result_t.tolist() == [0] * 4 + [1] * 3

    tasks = [(load_tasks("data", file), seed) for file, seed in (("tiny.pt", 0), ("more.pt", 5))]
    wanted, accuracies = literally(words_of(name, way), *tasks)
    assert weights.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(weights[key], wanted[key]), key
    assert result_a[-1].tolist() == pytest.approx(accuracies)


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
    words = ["--model", "online", "--data_path", "data", "--threads", 1, "--n_layers", 0]
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
