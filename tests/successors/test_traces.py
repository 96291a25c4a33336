"""The successors against traces of their authors' own code: every *.json beside this file.

A trace is a stream, the initial weights, what chance decided (`events`) and the state after each minibatch. The learner
is made as a run makes it; its random source deals out the events, and complains of any that is asked for and is not
there, or differs, or is left over. A trace of code that no learner here follows fails.
"""

import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from model import engine

FOLDER = Path(__file__).parent
TRACES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
TOLERANCE = {"reference": 1e-5, "native": 1e-4}

# (repository, first file) of the code that made a trace -> the learner, its flags by the names of the code, settings
MAMMOTH, MIR = "github.com/aimagelab/mammoth", "github.com/optimass/Maximally_Interfered_Retrieval"
LAMAML, CLSER = "github.com/montrealrobotics/La-MAML", "github.com/NeurAI-Lab/CLS-ER"
GSS = "github.com/rahafaljundi/Gradient-based-Sample-Selection"
BUFFER = {"lr": "lr", "buffer_size": "memories", "minibatch_size": "replay_batch_size"}
SAME = ("glances", "replay_batch_size", "memories", "opt_lr", "opt_wt", "alpha_init", "learn_lr", "sync_update")
TEACHERS = tuple(f"{name}_model_{what}" for name in ("plastic", "stable") for what in ("update_freq", "alpha"))
LEARNERS = {
    (LAMAML, "model/lamaml.py"): ("lamaml", {name: name for name in (*SAME, "grad_clip_norm")}, {}),
    (CLSER, "models/clser.py"): ("clser", {**BUFFER, **{name: name for name in ("reg_weight", *TEACHERS)}}, {}),
    (GSS, "model/GSS_Greedy.py"): (
        "gss",
        {
            "lr": "lr",
            "n_sampled_memories": "memories",
            "n_constraints": "replay_batch_size",
            "n_memories": "candidates",
            "memory_strength": "n_compared",
            **{name: name for name in ("n_iter", "change_th")},
        },
        {},
    ),
    (MAMMOTH, "models/agem.py"): ("agem", {**BUFFER, "batch_size": "task_memories"}, {}),
    (MAMMOTH, "models/agem_r.py"): ("agem", BUFFER, {"past_only": False}),
    (MAMMOTH, "models/der.py"): ("der", {**BUFFER, "alpha": "alpha"}, {}),
    (MAMMOTH, "models/derpp.py"): ("derpp", {**BUFFER, "alpha": "alpha", "beta": "beta"}, {}),
    (MAMMOTH, "models/er_ace.py"): ("er_ace", {**BUFFER, "task_free": "task_free"}, {}),
    (MIR, "mir.py"): (
        "mir",
        {
            "lr": "lr",
            "mem_size": "memories",
            "buffer_batch_size": "replay_batch_size",
            **{name: name for name in ("subsample", "disc_iters", "compare_to_old_logits")},
        },
        {},
    ),
}
# hyperparameters that say which code ran, with the only value that a learner here follows
ONLY = {"use_custom_classifier": False, "method": "mir_replay", "second_order": False, "n_epochs": 1}
ONLY |= dict.fromkeys(("optim_wd", "optim_mom", "rand_replay"), 0)
# and what had no effect there, or decided about the stream alone
IDLE = ("batch_size", "use_old_task_memory", "cifar_batches", "samples_per_task", "seed")
# values of flags that have another name here
VALUES = {("compare_to_old_logits", True): "by_place", ("compare_to_old_logits", False): "no"}
# what of a trace is no decision, but follows from those before it
FOLLOWS = ("place", "ema", "projection", "eligible", "scores", "loader_batch")


class Dealt:
    """A random source that deals out a trace's events; samples: of each task that the code took one of, a Sampled."""

    def __init__(self, samples):
        self.events, self.sampled, self.samples = deque(), Sampled([], 0), deque(samples)
        self.samples_tasks = bool(self.samples)

    def deal(self, events, capacity):
        """The decisions among these events come next."""
        for event in events:
            if event["kind"] == "places":  # of a whole minibatch
                n = max(event["n_seen_before"], capacity)
                for u in event["uniform"]:
                    self.events.append({"kind": "randint", "high": n, "high_included": False, "value": int(u)})
            elif event["kind"] == "multinomial" and np.ndim(event["weights"]) == 2:  # one of two, several times
                for weights, picked in zip(event["weights"], event["picked"], strict=True):
                    self.events.append({**event, "weights": weights, "picked": picked})
            elif event["kind"] not in FOLLOWS and event.get("n_held") != 0:  # nothing to draw from
                self.events.append({"replacement": True, **event})  # where a trace does not say, as MER draws

    def take(self, *kinds, **wanted):
        event = self.events.popleft()
        assert event["kind"] in kinds and {name: event[name] for name in wanted} == wanted
        return event

    def next_is(self, *kinds):
        return bool(self.events) and self.events[0]["kind"] in kinds

    def draw(self, n, k, replacement=True):
        if n == 0:
            return []
        if not self.next_is("draw", "subsample"):
            assert k > n and not replacement  # all of them: nothing to decide
            return list(range(n))
        held = "n_eligible" if self.next_is("subsample") else "n_held"
        indices = self.take("draw", "subsample", replacement=replacement, **{held: n})["indices"]
        assert len(indices) == min(n, k)
        return indices

    def sample(self, n, k):
        return self.draw(n, k, replacement=False)

    def randint(self, n):
        if self.samples_tasks and not self.events:
            return self.sampled.place(n)
        event = self.take("randint")
        assert event["high"] - (not event["high_included"]) == n
        return event["value"]

    def shuffle(self, n):
        if self.next_is("permute", "permute_memory"):
            return self.take("permute", "permute_memory")["order"]
        ended, self.sampled = self.sampled, self.samples.popleft()
        return ended.order(n)

    def random(self):
        return self.take("uniform")["value"]

    def choose(self, weights, k):
        event = self.take("multinomial", replacement=False)
        assert len(event["picked"]) == k
        np.testing.assert_allclose(weights, event["weights"], rtol=0, atol=1e-4)
        return event["picked"]

    def getstate(self):
        return None


class Sampled:
    """The decisions by which a random sample of a task, of up to `size` examples, becomes the `wanted` ones."""

    def __init__(self, wanted, n):
        self.wanted, self.places = wanted, list(range(min(len(wanted), n)))

    def place(self, n):
        """The place that example number n takes in the sample, one beyond it if none."""
        if n not in self.wanted:
            return n
        place = next(i for i, example in enumerate(self.places) if example not in self.wanted)
        self.places[place] = n
        return place

    def order(self, n):
        """The places of the sample's examples in the order in which they are wanted."""
        assert n == len(self.places)
        return [self.places.index(example) for example in self.wanted]


def flags_of(trace):
    """The learner that follows a trace's code, and its flags."""
    source = trace["source"]["repository"], trace["source"]["files"][0]
    assert source in LEARNERS, f"no learner here follows {source}"
    name, names, flags = LEARNERS[source]
    flags = dict(flags)
    for word, value in trace["hyperparameters"].items():
        if word in ONLY:
            assert value == ONLY[word], f"no learner here follows {word}={value}"
        elif word in names or word not in IDLE:
            flags[names[word]] = VALUES.get((word, value), value)
    if names.get("minibatch_size") and "minibatch_size" not in trace["hyperparameters"]:  # Mammoth's default
        flags[names["minibatch_size"]] = len(trace["stream"][0]["y"])
    return name, flags


def samples_of(trace):
    """For each task the sample of it that enters memory at its end; none where no task's does."""
    if not any(batch.get("task_end_events") for batch in trace["stream"]):
        return
    first = 0
    for end in trace["task_ends"]:
        events = trace["stream"][end].get("task_end_events", [])
        wanted = next((event["of_the_task"] for event in events if event["kind"] == "loader_batch"), [])
        yield Sampled(wanted, sum(len(batch["y"]) for batch in trace["stream"][first : end + 1]))
        first = end + 1


def tensors(values):
    return {key: torch.tensor(value) for key, value in values.items()}


def slot_of(memory, place):
    return memory.past[place] if hasattr(memory, "past") else memory.first_slot + place


class Kept:
    """What lies at each place of the memory, as the events tell it."""

    def __init__(self):
        self.at = {}

    def follow(self, events, x):
        """The events of a minibatch of inputs x."""
        arriving, n = list(x), 0  # the minibatch, and how many of it found their place
        for event in events:
            if event["kind"] == "loader_batch":
                arriving, n = list(event["x"]), 0
            elif event["kind"] == "permute":
                arriving, n = [arriving[i] for i in event["order"]], 0
            for place in [event["slot"]] if event["kind"] == "place" else event.get("slots", []):
                if event["kind"] in ("place", "places"):
                    if place is not None:
                        self.at[place] = arriving[n]
                    n += 1

    def check(self, learner):
        state = learner.examples.state()
        for place, x in self.at.items():
            found = state["x"][state["slots"].index(slot_of(learner.memory, place))]
            assert torch.equal(found, torch.tensor(x)), f"memory {place}"


def by_place(learner, values, n):
    """values of the memory's slots, 0 where nothing is, (n, ...)"""
    found = torch.zeros(n, *np.shape(values)[1:])
    for place in range(learner.memory.size):
        found[place] = torch.as_tensor(values[slot_of(learner.memory, place)])
    return found


def inputs_by_slot(learner):
    """(slots, D) inputs, 0 where nothing is."""
    state = learner.examples.state()
    found = np.zeros((max(state["slots"]) + 1, learner.n_inputs), np.float32)
    found[state["slots"]] = state["x"]
    return found


def logits_of(learner, n):
    if hasattr(learner, "old"):  # mir: by place
        reached = learner.old.logits if learner.old else torch.zeros(0, learner.n_outputs)
        return torch.nn.functional.pad(reached, (0, 0, 0, n - len(reached)))  # 0 where no draw has been
    state = learner.examples.state()
    rows = dict(zip(state["slots"], state["logits"], strict=True))
    return by_place(learner, [rows.get(i, torch.zeros(learner.n_outputs)) for i in range(max(rows) + 1)], n)


FURTHER = {
    "memory.logits": logits_of,
    "memory.labels": lambda learner, n: by_place(learner, learner.examples.labels, n),
    "memory.scores": lambda learner, n: torch.tensor(learner.memory.scores[:n], dtype=torch.float32),
    "memory.inputs": lambda learner, n: by_place(learner, inputs_by_slot(learner), n),
    "memory.tasks": lambda learner, n: by_place(learner, learner.examples.tasks, n),
}


def rates_of(learner, i):
    """The learning rates of the i-th weight tensor."""
    weights = list(learner.net.state_dict().values())
    return learner.rates.state()["rates"].split([w.numel() for w in weights])[i].view_as(weights[i])


def of_network(name):
    """The weight tensors of a further network."""
    return lambda learner, i: list(getattr(learner, name).state_dict().values())[i]


NUMBERED = {"alpha": rates_of, "plastic": of_network("plastic"), "stable": of_network("stable")}


def found_in(learner, key, n):
    """What a trace calls `key`, a tensor of n rows."""
    name, _, number = key.partition(".")
    return NUMBERED[name](learner, int(number)) if name in NUMBERED else FURTHER[key](learner, n)


def compare(learner, after, tolerance):
    """The state of a learner with that of a trace."""
    weights = {f"net.{name}": value for name, value in learner.net.state_dict().items()}
    assert weights.keys() <= after.keys()
    for key, wanted in after.items():
        found = weights[key] if key in weights else found_in(learner, key, len(wanted))
        assert found.shape == wanted.shape or found.numel() == wanted.numel() == 0, key
        distance = float((found.reshape(wanted.shape) - wanted).abs().max()) if wanted.numel() else 0
        assert distance <= tolerance, f"{key}: {distance}"


def follow(trace, kind, make_learner, monkeypatch):
    """Runs a trace through its learner; AssertionError where they differ."""
    model, flags = flags_of(trace)
    D, H, _, C = trace["sizes"]
    stream = trace["stream"]
    n_tasks = 1 + max(batch["t"] for batch in stream)
    draws = Dealt(samples_of(trace))
    monkeypatch.setattr(engine, "make_draws", lambda args: draws)
    shape = {"n_hiddens": H, "n_layers": len(trace["sizes"]) - 2, "engine": kind}
    shape["batch_size"] = max(len(batch["y"]) for batch in stream)
    learner = make_learner(model, {**flags, **shape}, (D, C, n_tasks))
    initial = tensors(trace["initial"])
    learner.load_state_dict({key: initial["net." + key.partition(".")[2]] for key in learner.state_dict()})
    compare(learner, initial, 0)

    kept, ended = Kept(), []
    for i, (batch, after) in enumerate(zip(stream, trace["after"], strict=True)):
        capacity = learner.memory.capacity
        draws.deal(ended, capacity)  # what happened at the end of a task, before another one begins
        draws.deal(batch["events"], capacity)
        learner.observe(torch.tensor(batch["x"]), batch["t"], torch.tensor(batch["y"]))
        assert not draws.events, f"minibatch {i}: {draws.events} were not asked for"
        kept.follow([*ended, *batch["events"]], batch["x"])
        kept.check(learner)
        compare(learner, tensors(after), TOLERANCE[kind])
        ended = batch.get("task_end_events", [])


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("name", TRACES)
def test_learner_is_its_authors(name, kind, make_learner, monkeypatch):
    follow(json.loads(TRACES[name].read_text()), kind, make_learner, monkeypatch)


NOTICED = ("lr", "alpha", "beta", "opt_lr", "alpha_init", "reg_weight")
CHANGES = [
    (name, word)
    for name in ("agem_mammoth", "clser", "der", "derpp", "er_ace", "gss_greedy", "lamaml_lamaml_first_order", "mir")
    for word in json.loads(TRACES[name].read_text())["hyperparameters"]
    if word in NOTICED
]


@pytest.mark.parametrize("name,word", CHANGES)
def test_a_change_of_one_percent_is_noticed(name, word, make_learner, monkeypatch):
    trace = json.loads(TRACES[name].read_text())
    trace["hyperparameters"][word] *= 1.01
    with pytest.raises(AssertionError, match=r"net\.net|memory|alpha"):
        follow(trace, "reference", make_learner, monkeypatch)


def test_a_trace_that_no_learner_follows_fails(make_learner, monkeypatch):
    trace = json.loads(TRACES["der"].read_text())
    for change in ({"files": ["models/hal.py"]}, {"repository": "github.com/nobody/nothing"}):
        with pytest.raises(AssertionError, match="no learner here follows"):
            follow({**trace, "source": trace["source"] | change}, "reference", make_learner, monkeypatch)
    with pytest.raises(KeyError):
        follow({**trace, "hyperparameters": {"momentum": 0.9}}, "reference", make_learner, monkeypatch)
