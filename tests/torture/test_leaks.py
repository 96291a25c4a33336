"""A long run holds no more at its end than when it was warm: memory, file descriptors, threads."""

import os
import threading

import pytest
from runs import WAYS, after_each, in_child, main_in, memory_of_this_process, place, words_of

N_TASKS, N_TRAIN = 100, 20
WARM = 30  # tasks
MOST_GROWTH = 3 << 20  # bytes: the accuracies of 70 tasks, and what the allocator wastes


def held():
    """What this process holds: memory, file descriptors, threads."""
    return memory_of_this_process()[1], len(os.listdir("/proc/self/fd")), threading.active_count()


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
                if batch.number % n_train == n_train - 1:
                    seen[batch.t] = held()

            with after_each(look):
                code = main_in(folder, words)()
            for t in (WARM, N_TASKS - 1):
                print(*seen[t], sep=" ")
            return code

        found = in_child(run)
        assert found.code == 0, found.text
        (memory, *others), (memory_at_end, *others_at_end) = (
            map(int, line.split()) for line in found.text.splitlines()[-2:]
        )
        assert memory_at_end - memory < MOST_GROWTH, f"{learner}: {memory:,} bytes grew to {memory_at_end:,}"
        assert others_at_end == others, learner
