"""SIGKILL at any moment, again and again: every run that is resumed ends as if nothing had happened."""

import os
import random
import signal
import time

import pytest
from runs import WAYS, learners, main_in, place, result_in, start_child, words_of

from run import checkpoints

N_KILLS = 10  # for each learner and way: 400 in all, 200 of them with the draws that are an engine's own
N_EPOCHS = {"native": 30, "reference": 8}  # 720 and 192 minibatches


@pytest.fixture
def begin(tmp_path):
    """begin(folder, words): starts main.py there, in a process of its own; returns its number."""
    return lambda folder, words: start_child(main_in(folder, words), tmp_path / "output")


def wait(child):
    """The exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", learners())
def test_killed_again_and_again(name, way, begin, tmp_path):
    chance = random.Random(f"{name} {way}")
    words = words_of(name, way, "--checkpoint_every", chance.randint(1, 20), "--n_epochs", N_EPOCHS[way[0]])
    if way[0] == "native":
        words += ["--threads", chance.choice("12")]
    whole = place(tmp_path / "whole")
    started = time.monotonic()
    assert wait(begin(whole, words)) == 0, (tmp_path / "output").read_text()
    duration, wanted = time.monotonic() - started, result_in(whole)

    n_kills, n_goes = 0, 0
    while n_kills < N_KILLS:
        n_goes += 1
        folder, known = place(tmp_path / f"go {n_goes}"), None
        while True:
            path = [str(path.relative_to(folder)) for path in folder.glob("results/*.checkpoint")]
            assert len(path) <= 1
            if path:
                assert known in (None, path[0]), "the name that the first part gave it"
                known = path[0]
                assert checkpoints.load(folder / known)["format"] == checkpoints.FORMAT
            how = ["--resume", known] if known and chance.random() < 0.5 else [*words, "--resume", "auto"]
            child = begin(folder, how)
            if n_kills < N_KILLS:
                time.sleep(chance.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
            code = wait(child)
            if code != -signal.SIGKILL:
                assert code == 0, (tmp_path / "output").read_text()
                break
            n_kills += 1
            if list(folder.glob("results/*.json")) and not list(folder.glob("results/*.checkpoint")):
                break  # shot on its way out, when all was done
        found = result_in(folder)
        assert found.files == wanted.files
        assert known in (None, f"results/{found.name}.checkpoint")
        visible = [path for path in found.folder if not path.startswith(".")]
        assert len(visible) == 4, "a finished run leaves no checkpoint"
        hidden = [path for path in found.folder if path.startswith(".")]
        assert not any(found.name[-32:] in path for path in hidden), "and nothing half-written"
