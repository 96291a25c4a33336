"""What a run says of its seconds and its memory, against what is measured from outside."""

import json
import sys
import time

import numpy as np
import pytest
from runs import (  # noqa: F401
    WAYS,
    after,
    after_each,
    go_fixture,
    in_child,
    main_in,
    memory_of_this_process,
    place,
    words_of,
)

from model.engine import native
from run import evaluation, life, provenance

NATIVE, REFERENCE = WAYS[0], WAYS[2]
N_MINIBATCHES, N_COUNTS = 24, 7 * 3  # of a run of `place`: 3 tasks of 8 examples, each evaluated 7 times
MB = 1 << 20


def described(folder):
    (path,) = folder.glob("results/*.json")
    return json.loads(path.read_text())


def busy(seconds):
    """Computes for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
def test_seconds(way, go, tmp_path, monkeypatch):
    """Each kind has what happens in it and not what happens in another; a clock outside has them all."""
    load, hits, hits_of_snapshot = life.load_tasks, evaluation.hits, native.Snapshot.hits
    monkeypatch.setattr(life, "load_tasks", lambda *them: (time.sleep(0.3), load(*them))[1])
    monkeypatch.setattr(evaluation, "hits", lambda *them: (busy(0.02), hits(*them))[1])
    monkeypatch.setattr(native.Snapshot, "hits", lambda *them: (busy(0.02), hits_of_snapshot(*them))[1])
    folder, begin = place(tmp_path / "run"), time.perf_counter()
    with after_each(lambda batch: time.sleep(0.02)):
        assert go(folder, *words_of("online", way)).code == 0
    outside, seconds = time.perf_counter() - begin, described(folder)["seconds"]
    assert seconds["data"] >= 0.3
    assert seconds["training"] >= 0.02 * N_MINIBATCHES
    assert seconds["evaluation"] >= 0.02 * N_COUNTS
    assert seconds["training"] + seconds["evaluation"] <= seconds["total"], "on one thread they take turns"
    assert seconds["data"] + seconds["total"] <= outside


def test_seconds_of_a_run_in_parts(go, tmp_path):
    """What passes between the parts is nobody's."""
    folder, begin = place(tmp_path / "run"), time.perf_counter()
    words = words_of("online", NATIVE, "--checkpoint_every", 5)
    with after_each(lambda batch: time.sleep(0.02)):
        with after(12, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
            assert go(folder, *words).code == 130
        time.sleep(1)
        assert go(folder, *words, "--resume", "auto").code == 0
    outside, seconds = time.perf_counter() - begin - 1, described(folder)["seconds"]
    assert 0.02 * N_MINIBATCHES <= seconds["training"] <= seconds["total"] <= outside


def peaks(folder, size):
    """(what the .json says, what the kernel says of the process that has ended) of a run that once holds so much more.

    In bytes more than this process has, of which the run's is a fork, without what it has not touched.
    """

    def run():
        with after(12, lambda: np.ones(size, np.uint8).sum()):
            return main_in(folder, words_of("online", NATIVE))()

    before = memory_of_this_process()[1]
    found = in_child(run)
    assert found.code == 0, found.text
    return described(folder)["peak_memory_bytes"] - before, found.peak


def test_peak_memory(tmp_path):
    """After the figure is taken, the saving of the results may add a little."""
    small, large = (peaks(place(tmp_path / str(size)), size) for size in (0, 300 * MB))
    for said, of_kernel in (small, large):
        assert of_kernel - 20 * MB <= said <= of_kernel + MB
    assert 280 * MB < large[0] - small[0] < 320 * MB


def test_peak_memory_is_unknown_where_no_system_says_it(monkeypatch):
    monkeypatch.setattr(provenance.Path, "read_text", lambda self: open("/nowhere"))
    monkeypatch.setitem(sys.modules, "resource", None)
    assert provenance.peak_memory() is None
