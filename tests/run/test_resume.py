"""A run that was stopped goes on exactly where it was: its files are, bit for bit, those of one that was not."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import (  # noqa: F401
    DATA,
    WAYS,
    a_signal,
    after,
    go_fixture,
    in_child,
    learners,
    main_in,
    place,
    result_in,
    words_of,
)

import main
import model
from disk import safe
from model.engine import native
from run import checkpoints, provenance, saving, settings

ROOT = Path(main.__file__).parent
NATIVE, REFERENCE = WAYS[0], WAYS[2]
LAST = 24  # minibatches of a run of `place`: 3 tasks of 8 examples


def undisturbed(go, folder, words):
    found = go(folder, *words)
    assert found.code == 0, found.err
    return result_in(folder)


def stop(go, folder, n_minibatches, *words, by=signal.SIGTERM):
    """Stops a run after so many minibatches; returns the path of its checkpoint."""
    with after(n_minibatches, a_signal(by)):
        found = go(folder, *words)
    assert found.code == 128 + by, found.err
    assert re.search(rf"^stopped by {by.name}$", found.err, re.MULTILINE) and not found.out
    return re.search(r"^go on with: python main.py --resume (\S+)$", found.err, re.MULTILINE)[1]


def go_on(go, folder, path, *words):
    """Resumes to the end; returns what the run leaves."""
    found = go(folder, "--resume", path, *words)
    assert found.code == 0, found.err
    assert f"from {path}" in found.err
    return result_in(folder)


def assert_same(found, wanted):
    assert found.files == wanted.files
    assert len(found.folder) == 4, f"more than the files of a run: {found.folder}"


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", learners())
def test_stopped_several_times(name, way, go, tmp_path):
    words = words_of(name, way)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder, chance = place(tmp_path / "parts"), random.Random(f"{name} {way}")
    path = stop(go, folder, chance.randint(1, 9), *words)
    for _ in range(2):
        assert stop(go, folder, chance.randint(1, 7), "--resume", path) == path
    found = go_on(go, folder, path)
    assert_same(found, wanted)
    assert path == f"results/{found.name}.checkpoint", "the name is that of the first part"


STREAMS = {
    "batches": ("--batch_size", 3),
    "large batches": ("--batch_size", 1000),
    "epochs": ("--n_epochs", 2, "--samples_per_task", 5),
    "shuffled": ("--shuffle_tasks", "yes", "--seed", 3),
    "everything": ("--batch_size", 2, "--n_epochs", 3, "--shuffle_tasks", "yes", "--seed", 5, "--log_every", 1),
    "no layer": ("--n_layers", 0),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "name,way", [("gem", NATIVE), ("ewc", REFERENCE), ("meralg7", NATIVE), ("taskinput", REFERENCE)]
)
def test_whatever_the_stream(name, way, stream, go, tmp_path):
    words = words_of(name, way, *STREAMS[stream])
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder, n = place(tmp_path / "parts"), random.Random(stream).randint(1, 3)
    assert_same(go_on(go, folder, stop(go, folder, n, *words)), wanted)


@pytest.mark.parametrize("n_minibatches", [1, 4, 8, LAST])
@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
def test_at_the_edges(n_minibatches, way, go, tmp_path):
    """The first minibatch, the one before an evaluation, the last of a task, the last of all."""
    words = words_of("eralg4", way)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    assert_same(go_on(go, folder, stop(go, folder, n_minibatches, *words)), wanted)


def test_while_evaluations_are_under_way(go, tmp_path, monkeypatch):
    words = words_of("meralg1", NATIVE, "--threads", 2, "--log_every", 1)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    counted = native.Snapshot.hits

    def slowly(self, *arguments):
        time.sleep(0.002)
        return counted(self, *arguments)

    monkeypatch.setattr(native.Snapshot, "hits", slowly)
    folder = place(tmp_path / "parts")
    assert_same(go_on(go, folder, stop(go, folder, 5, *words)), wanted)


def test_images(go, tmp_path):
    """ResNet-18 with batch norm, whose running means are no weights, and classes that belong to tasks."""
    words = ["--model", "ewc", "--n_memories", 1, *DATA[:2], "--data_file", "cifar100.pt", "--threads", 1, "--lr", 0.01]
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        place(folder, n_tasks=2, n_train=2, n_test=2, n_inputs=3072, n_classes=2)
        content = torch.load(folder / "data" / "tiny.pt", weights_only=True)
        for half in content:
            half[1][2] += 2
        torch.save(content, folder / "data" / "cifar100.pt")
    wanted = undisturbed(go, tmp_path / "whole", words)
    assert_same(go_on(go, tmp_path / "parts", stop(go, tmp_path / "parts", 3, *words)), wanted)


def test_a_divergence_is_found_again(go, tmp_path):
    words = words_of("online", REFERENCE, "--lr", "1e30")
    assert go(place(tmp_path / "whole"), *words).code == 1
    folder = place(tmp_path / "parts")
    path = stop(go, folder, 1, *words)
    found = go(folder, "--resume", path)
    assert found.code == 1 and "online diverged" in found.err
    assert_same(result_in(folder), result_in(tmp_path / "whole"))


# killed, with the checkpoints that it wrote on the way


class Killed(BaseException):
    """Nothing is saved after it."""


def kill():
    raise Killed


@pytest.mark.parametrize("every,found_at", [(1, 17), (5, 15), (16, 16)])
def test_goes_on_from_the_latest_checkpoint(every, found_at, go, tmp_path):
    words = words_of("gem", NATIVE, "--checkpoint_every", every)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    with after(18, kill), pytest.raises(Killed):
        go(folder, *words)
    (path,) = folder.glob("results/*.checkpoint")
    assert checkpoints.load(path)["experience"]["next_minibatch"] == found_at
    assert_same(go_on(go, folder, path.relative_to(folder)), wanted)


def test_checkpoints_by_time():
    now, saved = 100.0, []
    journal = SimpleNamespace(save_checkpoint=lambda _: saved.append(now), checkpoints=[])
    experience = SimpleNamespace(learner=object.__new__(model.load("online")))
    checkpointer = checkpoints.Checkpointer((60, "seconds"), journal, experience, pytest.fail, clock=lambda: now)
    for number, later in enumerate([0, 59.9, 0.1, 30, 31, 200, 59, 2]):
        now += later
        checkpointer(SimpleNamespace(number=number))
    assert saved == pytest.approx([160, 221, 421, 482])


@pytest.mark.parametrize("every,wanted", [("never", 0), ("60s", 0), ("7", 3), ("24", 1), ("25", 0)])
def test_how_many_checkpoints(every, wanted, go, tmp_path, monkeypatch):
    saved, save = [], checkpoints.Journal.save_checkpoint
    monkeypatch.setattr(checkpoints.Journal, "save_checkpoint", lambda *them: (saved.append(1), save(*them)))
    found = undisturbed(go, place(tmp_path / "run"), words_of("online", NATIVE, "--checkpoint_every", every))
    assert len(saved) == wanted and len(found.folder) == 4


def test_default_is_a_minute():
    assert settings.parse([]).checkpoint_every == (60, "seconds")


def test_time_adds_up(go, tmp_path):
    folder = place(tmp_path / "parts")
    path = stop(go, folder, 3, *words_of("online", NATIVE))
    before = checkpoints.load(folder / path)
    go_on(go, folder, path)
    (about,) = (json.loads(path.read_text()) for path in folder.glob("results/*.json"))
    assert about["started"] == before["started"] and about["seconds"].keys() == before["seconds"].keys()
    assert all(about["seconds"][kind] > before["seconds"][kind] > 0 for kind in ("total", "training", "evaluation"))


# signals


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_a_process(by, go, tmp_path):
    """As a user has it: a program of its own, that is stopped, and goes on with no other flag."""
    words = words_of("meralg1", NATIVE, "--n_epochs", 50, "--checkpoint_every", 10)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in case we were told to ignore it, as children are
    with subprocess.Popen([sys.executable, ROOT / "main.py", *words], **pipes) as process:
        signal.signal(signal.SIGINT, before)
        while process.poll() is None and not list(folder.glob("results/*.checkpoint")):
            time.sleep(0.001)
        process.send_signal(by)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + by and not out
    path = re.search(rf"^stopped by {by.name}\ngo on with: python main.py --resume (\S+)$", err, re.MULTILINE)[1]
    n = checkpoints.load(folder / path)["experience"]["next_minibatch"]
    assert 10 <= n < 50 * LAST
    assert_same(go_on(go, folder, path), wanted)


def test_a_second_interrupt_quits(go, tmp_path):
    folder = place(tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    with after(5, lambda: [a_signal(signal.SIGINT)() for _ in range(2)]):
        found = go(folder, *words_of("online", NATIVE))
    assert found.code == 130 and found.err.endswith("\ninterrupted\n") and not found.out
    assert not list(folder.glob("results/*")) and signal.getsignal(signal.SIGINT) == handler


def test_an_ignored_signal_stays_ignored(go, tmp_path):
    """As `nohup` or a shell's `&` have it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with after(5, a_signal(signal.SIGINT)):
            undisturbed(go, place(tmp_path / "run"), words_of("online", NATIVE))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_results_are_saved_loses_nothing(by, go, tmp_path, monkeypatch):
    save = saving.save

    def interrupted(*them):
        os.kill(os.getpid(), by)
        return save(*them)

    monkeypatch.setattr(saving, "save", interrupted)
    undisturbed(go, place(tmp_path / "run"), words_of("online", NATIVE))


# what is refused, and what may change


@pytest.mark.parametrize(
    "change,text",
    [
        (("--lr", 0.2), "--lr was 0.1, now 0.2"),
        (("--seed", 1, "--n_epochs", 2), "--n_epochs was 1, now 2; --seed was 0, now 1"),
        (("--model", "eralg5"), "--model was eralg4, now eralg5"),
        (("--engine", "reference"), "--engine was native, now reference"),
        (("--draws", "shuffle"), "--draws was uniform, now shuffle"),
        (("--log_every", 5), "--log_every was 4, now 5"),
        (("--shuffle_tasks", "yes"), "--shuffle_tasks was False, now True"),
    ],
)
def test_changed_flags_are_refused(change, text, go, tmp_path):
    folder = place(tmp_path / "run")
    path = stop(go, folder, 3, *words_of("eralg4", NATIVE))
    before = (folder / path).read_bytes()
    found = go(folder, "--resume", path, *change)
    assert found.code == 2 and not found.out
    assert f"error: --resume {path}: this is another run ({text}); drop the changes or start anew" in found.err
    assert (folder / path).read_bytes() == before
    assert len(list(folder.glob("results/*"))) == 1


def test_threads_are_part_of_a_run_where_sums_depend_on_them(go, tmp_path):
    folder = place(tmp_path / "run")
    path = stop(go, folder, 3, *words_of("online", REFERENCE))
    found = go(folder, "--resume", path, "--threads", 2)
    assert found.code == 2 and "(--threads was 1, now 2)" in found.err
    found = go(folder, *words_of("online", REFERENCE), "--threads", 2, "--resume", "auto")
    assert found.code == 0 and f"from {path}" in found.err and "threads: 1" in found.err


def test_changed_data_are_refused(go, tmp_path):
    folder = place(tmp_path / "run")
    path = stop(go, folder, 3, *words_of("eralg4", NATIVE))
    content = torch.load(folder / "data" / "tiny.pt", weights_only=True)
    content[1][2][2][3] = 1 - content[1][2][2][3].clamp(max=1)
    torch.save(content, folder / "data" / "tiny.pt")
    found = go(folder, "--resume", path)
    assert found.code == 2 and re.search(
        r"this is another run \(the data were [0-9a-f]{12}…, now [0-9a-f]{12}…\)", found.err
    )


def test_what_moves_no_number_may_change(go, tmp_path):
    """The folders, the number of threads of the native engine, how it is watched."""
    words = words_of("eralg4", NATIVE)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    path = stop(go, folder, 7, *words)
    (folder / "data").rename(folder / "moved")
    shutil.move(folder / path, folder / "elsewhere")
    more = (
        "--keep_state",
        "yes",
        "--save_path",
        "new/",
        "--data_path",
        "moved",
        "--threads",
        2,
        "--progress",
        "yes",
        "--checkpoint_every",
        10,
    )
    found = go(folder, "--resume", "elsewhere", *more)
    assert found.code == 0, found.err
    assert not list(folder.glob("results/*")) and not (folder / "elsewhere").exists(), (
        "a finished run leaves no checkpoint"
    )
    (folder / "results").rmdir()
    (folder / "new").rename(folder / "results")
    found = result_in(folder)
    assert found.files[".txt"] == wanted.files[".txt"]
    learners = [
        torch.load(io.BytesIO(it.files[".state"]), weights_only=True)["learner"]["parts"] for it in (found, wanted)
    ]
    for name, part in learners[1].items():
        for key, value in part.items():
            torch.testing.assert_close(learners[0][name][key], value, rtol=0, atol=0)
    for key in ("result_t", "result_a", "examples_seen", "stats"):
        assert found.files[".json"][key] == wanted.files[".json"][key]


def test_what_is_no_checkpoint(go, tmp_path):
    folder = place(tmp_path / "run")
    (folder / "text").write_text("text")
    for path, text in [
        ("nowhere", "no such file; give a .checkpoint file"),
        ("text", "not a checkpoint of this program"),
        ("data", "not a checkpoint of this program (it is no file)"),
        ("", "no such file"),
        ("data/tiny.pt", "not a checkpoint of this program"),
        ("/dev/zero", "not a checkpoint of this program (it is no file)"),
    ]:
        found = go(folder, "--resume", path)
        assert found.code == 2 and f"error: --resume {path}: {text}" in found.err, found.err


@pytest.mark.parametrize(
    "change",
    [{"made_by": [{}]}, {"made_by": []}, {"name": ".."}, {"name": "x" * 300}, {"name": "a/b"}, {"flags": {}}],
    ids=str,
)
def test_a_checkpoint_whose_words_are_odd_is_refused_before_the_run(change, go, tmp_path):
    folder = place(tmp_path / "run")
    path = folder / stop(go, folder, 3, *words_of("eralg4", NATIVE))
    content = safe.load(path, {})
    path.write_bytes(safe.dump(content | change))
    found = go(folder, "--resume", path)
    assert found.code == 2 and f"error: --resume {path}: not a checkpoint of this program" in found.err
    path.write_bytes(safe.dump(content))
    assert go(folder, "--resume", path).code == 0


def test_another_program_is_noted(go, tmp_path, monkeypatch):
    folder = place(tmp_path / "run")
    path = stop(go, folder, 3, *words_of("eralg4", NATIVE))
    made_by = provenance.made_by
    monkeypatch.setattr(provenance, "made_by", lambda chosen: made_by(chosen) | {"code": "x", "cpu": "another one"})
    found = go(folder, "--resume", path)
    assert found.code == 0
    assert "note: not what it was: code, cpu; the numbers may not be those of an undisturbed run" in found.err


def test_whether_the_state_is_kept_may_change(go, tmp_path):
    folder = place(tmp_path / "run")
    path = stop(go, folder, 3, *words_of("eralg4", NATIVE))
    found = go(folder, "--resume", path, "--keep_state", "no")
    assert found.code == 0, found.err
    assert not list(folder.glob("results/*.state")) and list(folder.glob("results/*.pt"))


# --resume auto


def test_resume_without_a_word_means_auto(go, tmp_path):
    folder, words = place(tmp_path / "run"), words_of("eralg4", NATIVE)
    path = stop(go, folder, 3, *words, "--resume")
    found = go(folder, *words, "--resume")
    assert found.code == 0 and f"goes on after 3 examples, from {path}" in found.err


def test_auto_goes_on_where_there_is_something(go, tmp_path):
    words = words_of("gem", NATIVE)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    path = stop(go, folder, 6, *words, "--resume", "auto")
    for _ in range(2):
        assert stop(go, folder, 6, *words, "--resume", "auto") == path
    assert go(folder, *words, "--resume", "auto").code == 0
    assert_same(result_in(folder), wanted)
    found = go(folder, *words, "--resume", "auto")
    assert found.code == 0 and "goes on" not in found.err, "finished: the next one starts anew"
    assert len(list(folder.glob("results/*.json"))) == 2


def test_auto_starts_anew_where_there_is_nothing_of_this_very_run(go, tmp_path, monkeypatch):
    words = words_of("gem", NATIVE)
    wanted = undisturbed(go, place(tmp_path / "whole"), words)
    folder = place(tmp_path / "parts")
    others = [stop(go, folder, 6, *words, *more) for more in (("--seed", 1), ("--model", "online"))]
    path = stop(go, folder, 6, *words)
    whole = (folder / path).read_bytes()
    (folder / path).write_bytes(whole[: len(whole) // 2])
    (folder / "results" / "gem_tiny.pt_junk.checkpoint").mkdir()
    found = go(folder, *words, "--resume", "auto")
    assert found.code == 0 and "goes on" not in found.err
    assert all((folder / other).exists() for other in others)
    for other in [*others, path]:
        (folder / other).unlink()
    (folder / "results" / "gem_tiny.pt_junk.checkpoint").rmdir()
    assert_same(result_in(folder), wanted)
    path = stop(go, folder, 6, *words)
    monkeypatch.setattr(provenance, "code_identity", lambda *of: "other")
    assert "goes on" not in go(folder, *words, "--resume", "auto").err, "another program's"
    assert (folder / path).exists()


def test_two_processes_do_not_go_on_from_one_checkpoint(go, tmp_path):
    """The second says so and stops; when the first is gone, however it went, the next may."""
    folder, words = place(tmp_path), words_of("meralg1", NATIVE, "--checkpoint_every", 5)
    with after(11, a_signal(signal.SIGTERM)):
        assert go(folder, *words).code == 143
    (path,) = folder.glob("results/*.checkpoint")
    said = []

    def another():
        for how in ((*words, "--resume", "auto"), ("--resume", str(path))):
            said.append(in_child(main_in(folder, how)))

    with after(3, another):
        assert go(folder, *words, "--resume", "auto").code == 0
    assert [found.code for found in said] == [2, 2]
    assert all("another process is at this run; wait for its end, or stop it first" in found.text for found in said)
    assert not path.exists()
    assert result_in(folder).files


def test_a_run_that_has_just_begun_is_not_taken_over(go, tmp_path):
    folder, words = place(tmp_path), words_of("meralg1", NATIVE, "--checkpoint_every", 5)
    said = []
    with after(7, lambda: said.append(in_child(main_in(folder, [*words, "--resume", "auto"])))):
        assert go(folder, *words).code == 0
    assert said[0].code == 2 and "another process is at this run" in said[0].text
