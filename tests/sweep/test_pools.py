"""What runs need of a machine: cores, cards; what ends them, and what does not."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from sweep import pools
from sweep.conduct import Signals
from sweep.pools import Places


def job(threads=1, gpu=False):
    return SimpleNamespace(threads=threads, gpu=gpu)


@pytest.fixture
def crowd():
    """Takes places on threads of their own; tells the threads, runs and cards that were at work at once, each time."""
    stop = threading.Event()

    def run(places, jobs):
        lock, cores, cards, seen = threading.Lock(), [], [], []

        def work_on(one):
            with places.taken(one, stop) as variables:
                with lock:
                    cores.append(one.threads)
                    cards.append(variables.get("CUDA_VISIBLE_DEVICES"))
                    seen.append((sum(cores), len(cores), [card for card in cards if card]))
                time.sleep(0.02)
                with lock:
                    cores.remove(one.threads)
                    cards.remove(variables.get("CUDA_VISIBLE_DEVICES"))

        workers = [threading.Thread(target=work_on, args=[one]) for one in jobs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
        assert len(seen) == len(jobs)
        return seen

    return run


def test_threads_of_all_runs_together_fit_the_cores(crowd):
    jobs = [job(threads) for threads in (1, 2, 4, 3, 1, 2, 4, 1)]
    seen = crowd(Places(4, []), jobs)
    assert max(n_cores for n_cores, _, _ in seen) <= 4
    assert max(n_runs for _, n_runs, _ in seen) > 1


def test_a_run_of_more_threads_than_cores_has_them_all(crowd):
    seen = crowd(Places(2, []), [job(8), job(1), job(8)])
    assert all(n_runs == 1 for _, n_runs, _ in seen)


@pytest.mark.parametrize("cores", [None, 4])
def test_each_run_on_a_gpu_has_a_card_of_its_own(cores, crowd):
    seen = crowd(Places(cores, ["0", "3"]), [job(1, gpu=True) for _ in range(6)])
    assert {card for _, _, cards in seen for card in cards} == {"0", "3"}
    assert all(len(set(cards)) == len(cards) for _, _, cards in seen)


def test_as_many_as_were_asked_for_whatever_they_need(crowd):
    assert max(n_runs for _, n_runs, _ in crowd(Places(None, []), [job(8) for _ in range(3)])) == 3


def test_who_waits_for_a_place_hears_the_end():
    places, stop, found = Places(1, []), threading.Event(), []

    def wait():
        with places.taken(job(), stop) as variables:
            found.append(variables)

    with places.taken(job(), stop):
        waiting = threading.Thread(target=wait)
        waiting.start()
        stop.set()
        waiting.join(10)
    assert found == [None]


def test_cards_are_those_that_this_program_may_use(monkeypatch):
    monkeypatch.setattr(pools.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pools.cards() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-12ab")
    assert pools.cards() == ["5", "GPU-12ab"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(number, signal.SIG_IGN)
        assert Signals.ignored() == [number]
        signals = Signals(Signals.ignored())
        os.kill(os.getpid(), number)
        (other,) = set(before) - {number}
        os.kill(os.getpid(), other)
        assert signals.received == other and signal.getsignal(number) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
