"""What all learners share: an engine, a place for examples, a network; and the reservoir of those that replay.

A learner states its hyperparameters in `flags` and its rule in `learn` (a minibatch) or `learn_one` (an example).
Examples are passed around as slots: `[current, *self.memory.draw(k)]` is a batch.
"""

from abc import ABC, abstractmethod

from model import engine, networks
from model.flags import LR, MEMORIES, N_HIDDENS, N_LAYERS, REPLAY_BATCH_SIZE
from model.memory import Reservoir


class Learner(ABC):
    """A continual learner: `observe` minibatches one after another, `forward` at any moment.

    n_inputs, n_outputs, n_tasks   sizes of the data
    args   the flags; image_shape and class_ranges of the data (None for plain vectors); minibatch_slots: the most
           examples that `observe` will get at once
    """

    flags = (LR, N_HIDDENS, N_LAYERS)
    takes_networks = True  # whether it learns with any network that --network names
    needs_task = False  # whether an answer depends on the task of the example
    mixes_tasks = False  # whether its stream is one of all tasks at once, not of one task after another
    keeps_logits = False  # whether examples have `logits`, what the network once gave out for them

    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        self.args, self.n_inputs, self.n_outputs, self.n_tasks = args, n_inputs, n_outputs, n_tasks
        self.engine = engine.create(args)
        self.examples = self.engine.examples(n_inputs, n_outputs if self.keeps_logits else 0)
        self.first_free_slot = args.minibatch_slots  # the slots before it take the incoming minibatch
        self.build()

    def build(self):
        """Makes the networks and the memories. Unless overridden: one network, as --network or the data ask for."""
        self.net = self.network(networks.for_data(self.args, self.n_inputs, self.n_outputs))

    def network(self, module):
        """The engine's network of a torch module, trained on this learner's examples."""
        return self.engine.network(module, self.examples, self.args.lr, self.args.class_ranges)

    # the interface of a learner

    def observe(self, x, t, y):
        """Learns from a minibatch of task t: x (B, D) float32, y (B,) labels."""
        self.learn(self.examples.put(0, x, t, y), t)

    @abstractmethod
    def learn(self, batch, t):
        """The learner's rule for a minibatch (a list of slots) of task t."""

    def forward(self, x, t):
        """(B, C) outputs for x (B, D) of task t."""
        return self.network_of(t).predict(x, t)

    def __call__(self, x, t):
        return self.forward(x, t)

    def network_of(self, t):
        """The network that answers for task t."""
        return self.net

    def notes(self):
        """What a reader of the results should know, by name."""
        return {}

    def remarks(self):
        """Lines that a user should read before it learns."""
        return []

    def take_loss(self):
        """The sum of the losses of all steps since the last call, tried ones, too; not finite if any was not."""
        return self.engine.take_loss()

    def is_finite(self):
        """Whether all weights are finite numbers."""
        return all(net.is_finite() for net in self.named_networks().values())

    def why_no_state(self):
        """None: `state` gives all that it knows. (model.foreign has learners of which it does not)"""
        return None

    # weights and state

    def named_networks(self):
        """The networks by the prefix of their weights' names."""
        return {"net.": self.net}

    def state_dict(self):
        """The weights under the original's names, as torch tensors on the CPU."""
        return {
            prefix + name: value
            for prefix, net in self.named_networks().items()
            for name, value in net.state_dict().items()
        }

    def load_state_dict(self, state):
        """The weights from a `state_dict`."""
        for prefix, net in self.named_networks().items():
            net.load_state_dict(
                {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            )

    def parts(self):
        """The parts of the learner that have a state, by name; a learner with further memories adds them."""
        return {"examples": self.examples, **self.named_networks()}

    def own_state(self):
        """What the learner keeps besides its parts: names of attributes with plain values (numbers, lists, tensors)."""
        return ()

    def state(self):
        """All that `load_state` needs to go on exactly as if nothing had happened."""
        return {
            "parts": {name: part.state() for name, part in self.parts().items()},
            "own": {name: getattr(self, name) for name in self.own_state()},
            "draws": self.engine.draws.getstate(),
        }

    def load_state(self, state):
        """Goes on where `state` was taken. Raises one of many errors where it is no state of such a learner."""
        n_kept = self._check_examples(**state["parts"]["examples"])
        for name, part in self.parts().items():
            part.load_state(state["parts"][name])
            if getattr(part, "size", 0) > n_kept:
                raise ValueError("it remembers more examples than there are")
        for name in self.own_state():
            setattr(self, name, state["own"][name])
        self.engine.draws.setstate(state["draws"])

    def _check_examples(self, slots, x, t, y, logits=None):
        """How many examples a state keeps, besides the latest minibatch. Raises ValueError where it cannot be ours."""
        first, n_kept = self.first_free_slot, sum(slot >= self.first_free_slot for slot in slots)
        latest = len(slots) - n_kept
        places = [*range(latest), *range(first, first + n_kept)]
        if latest > first or slots != places or not all(isinstance(slot, int) for slot in slots):
            raise ValueError("its examples are not where examples are")
        if not x.shape == (len(slots), self.n_inputs) or not t.shape == y.shape == (len(slots),):
            raise ValueError(f"its examples are not {len(slots)} of {self.n_inputs} inputs")
        if (logits is not None) != self.keeps_logits:
            raise ValueError("its examples have logits" if logits is not None else "its examples have no logits")
        if self.keeps_logits and logits.shape != (len(slots), self.n_outputs):
            raise ValueError(f"its examples do not have {self.n_outputs} logits each")
        if slots and not (0 <= t.min() <= t.max() < self.n_tasks and 0 <= y.min() <= y.max() < self.n_outputs):
            raise ValueError(f"its examples are not of {self.n_tasks} tasks and {self.n_outputs} classes")
        return n_kept


class ReplayLearner(Learner):
    """A learner with a reservoir, that takes the examples of a minibatch one at a time."""

    flags = (*Learner.flags, MEMORIES, REPLAY_BATCH_SIZE)

    def build(self):
        super().build()
        self.n_draws = self.args.replay_batch_size  # for each batch; with the current example the paper's k
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws)

    def learn(self, batch, t):
        for example in batch:
            self.learn_one(example)

    @abstractmethod
    def learn_one(self, current):
        """The learner's rule for one example (a slot)."""

    def parts(self):
        return {**super().parts(), "memory": self.memory}
