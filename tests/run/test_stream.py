"""The stream against the original's, and its counts against literal ones."""

import itertools
import random

import numpy as np
import pytest
import torch

from run.experience import seed_everything
from run.stream import Stream


def as_lists(minibatches):
    return [[batch.t, batch.indices.tolist()] for batch in minibatches]


def literal_stream(sizes, samples_per_task, n_epochs, batch_size, shuffle_tasks):
    """[(task, [index, ...]), ...], example by example; torch's randperm first, then `random.shuffle`."""
    order = torch.randperm(len(sizes)).tolist() if shuffle_tasks else range(len(sizes))
    kept = []
    for size in sizes:
        permutation = torch.randperm(size).tolist()
        kept.append(permutation if samples_per_task <= 0 else permutation[: min(samples_per_task, size)])
    minibatches = []
    for t in order:
        examples = []
        for _ in range(n_epochs):
            epoch = list(kept[t])
            random.shuffle(epoch)
            examples.extend(epoch)
        while examples:
            minibatches.append([t, examples[:batch_size]])
            examples = examples[batch_size:]
    return minibatches


def test_streams_are_the_original_ones(golden_streams):
    assert len(golden_streams["stream"]) >= 4
    for case in golden_streams["stream"]:
        seed_everything(case["seed"])
        stream = Stream(
            [case["n_train"]] * case["n_tasks"],
            case["samples_per_task"],
            case["n_epochs"],
            case["batch_size"],
            case["shuffle_tasks"] == "yes",
        )
        assert as_lists(stream.minibatches()) == case["batches"]


SETTINGS = list(itertools.product([-1, 0, 4, 50], [1, 3], [1, 4, 7, 100], [False, True]))


@pytest.mark.parametrize("sizes", [(10, 10, 10), (7,), (3, 12, 1, 5)])
def test_stream_is_the_literal_one(sizes):
    """Unequal tasks too; and nothing else is drawn from the random streams than what the stream needs."""
    for seed, settings in enumerate(SETTINGS):
        seed_everything(seed)
        wanted = literal_stream(sizes, *settings)
        ends = torch.rand(1).item(), np.random.rand(), random.random()
        seed_everything(seed)
        stream = Stream(sizes, *settings)
        assert as_lists(stream.minibatches()) == wanted, settings
        assert (torch.rand(1).item(), np.random.rand(), random.random()) == ends, settings
        assert stream.order == [t for t, _ in itertools.groupby(batch[0] for batch in wanted)]
        assert stream.n_minibatches == len(wanted)
        assert stream.n_examples == sum(len(indices) for _, indices in wanted)
        assert as_lists(stream.minibatches()) == wanted, "a stream can be gone through again"


@pytest.mark.parametrize("sizes", [(10, 10, 10), (7,), (3, 12, 1, 5)])
def test_a_mixed_stream_is_the_literal_one_in_random_order(sizes):
    """Each task is current for an equal part of it, up to one minibatch; its evaluations are as many as it says."""
    for seed, settings in enumerate(SETTINGS):
        seed_everything(seed)
        wanted = literal_stream(sizes, *settings)
        random.shuffle(wanted)
        ends = torch.rand(1).item(), np.random.rand(), random.random()
        seed_everything(seed)
        stream = Stream(sizes, *settings, mixed=True)
        batches = list(stream.minibatches())
        assert as_lists(batches) == wanted, settings
        assert (torch.rand(1).item(), np.random.rand(), random.random()) == ends, settings
        assert (stream.n_minibatches, stream.n_examples) == (len(wanted), sum(len(indices) for _, indices in wanted))
        parts = [(t, len(list(part))) for t, part in itertools.groupby(batch.current for batch in batches)]
        assert [t for t, _ in parts] == stream.order, settings
        assert max(n for _, n in parts) - min(n for _, n in parts) <= 1
        for log_every in (1, 3, 5, 1000):
            due = [i for i in range(len(batches)) if i % log_every == 0]
            due += [i for i in range(1, len(batches)) if batches[i].current != batches[i - 1].current]
            assert stream.n_evaluations(log_every) == len(set(due)) + 1, settings


@pytest.mark.parametrize("mixed", [False, True])
def test_minibatches_know_their_place_and_can_begin_anywhere(mixed):
    seed_everything(2)
    stream = Stream((5, 9, 4), -1, 2, 4, True, mixed)
    everything = list(stream.minibatches())
    assert [batch.number for batch in everything] == list(range(len(everything)))
    assert [batch.first for batch in everything] == list(
        itertools.accumulate((len(batch.indices) for batch in everything[:-1]), initial=0)
    )
    for start in range(len(everything) + 2):
        rest = list(stream.minibatches(start))
        assert as_lists(rest) == as_lists(everything[start:])
        assert [(b.number, b.first) for b in rest] == [(b.number, b.first) for b in everything[start:]]


@pytest.mark.parametrize("sizes", [(10, 10, 10), (7,), (3, 12, 1, 5)])
@pytest.mark.parametrize("log_every", [1, 2, 3, 5, 10, 11, 1000])
def test_number_of_evaluations(sizes, log_every):
    for seed, settings in enumerate(SETTINGS):
        seed_everything(seed)
        stream = Stream(sizes, *settings)
        count, current = 0, stream.order[0]
        for i, batch in enumerate(stream.minibatches()):
            if i % log_every == 0 or batch.t != current:
                count, current = count + 1, batch.t
        assert stream.n_evaluations(log_every) == count + 1, settings
