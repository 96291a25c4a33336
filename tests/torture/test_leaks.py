"""A long run holds no more at its end than when it was warm: memory, file descriptors, threads."""

import gc
import os
import re
import threading
from pathlib import Path

import pytest
from runs import WAYS, after_each, in_child, main_in, place, words_of

N_TASKS, N_TRAIN = 100, 20
MARKS = 29, 64, 99  # tasks: warm, half-way from there, the last
MOST_GROWTH = 1 << 20  # bytes in 35 tasks: their accuracies, and what the allocator wastes


def held():
    """What this process holds: memory of its own (not pages of files, which come as they are touched), file
    descriptors, threads.

    Garbage is collected first: with all that the tests hold, Python would put that off for longer than this run.
    """
    gc.collect()
    own = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(own[1]) * 1024, len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids="-".join)
@pytest.mark.parametrize("name", ["online", pytest.param("all", marks=pytest.mark.torture)])
def test_a_run_of_100_tasks_is_flat(name, way, tmp_path):
    """Evaluated on another thread, with a checkpoint now and then; the learners whose memories have a fixed size."""
    names = ["online", "taskinput", "eralg4", "eralg5", "meralg1", "meralg6", "meralg7"] if name == "all" else [name]
    n_train = 3 * N_TRAIN if name == "all" else N_TRAIN
    for learner in names:
        folder = place(tmp_path / learner, n_tasks=N_TASKS, n_train=n_train, n_test=10, n_inputs=36)
        words = [*words_of(learner, way), "--log_every", n_train, "--checkpoint_every", 150, "--n_hiddens", 20]
        words += ["--threads", 2 if way[0] == "native" else 1]

        def run(folder=folder, words=words):
            seen = {}

            def look(batch):
                if batch.number % n_train == n_train - 1 and batch.t in MARKS:
                    seen[batch.t] = held()

            with after_each(look):
                code = main_in(folder, words)()
            for t in MARKS:
                print(*seen[t])
            return code

        found = in_child(run)
        assert found.code == 0, found.text
        memory, *others = zip(*(map(int, line.split()) for line in found.text.splitlines()[-3:]), strict=True)
        # What leaks grows all the time; an allocator that takes another block does so once.
        growth = min(memory[1] - memory[0], memory[2] - memory[1])
        assert growth < MOST_GROWTH, f"{learner}: {memory} bytes"
        assert all(len(set(counts)) == 1 for counts in others), (learner, others)
