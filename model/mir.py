"""MIR: Experience Replay with Maximally Interfered Retrieval. (Aljundi et al., NeurIPS 2019, Algorithm 1)"""

import numpy as np
import torch

from model.flags import Flag, integer
from model.learner import Learner, ReplayLearner
from model.losses import CrossEntropy
from model.memory import ALJUNDI, OldLogits, Reservoir


class Net(Learner):
    """Replays those of a draw from other tasks whose loss a step on the new examples would increase most.

    With --compare_to_old_logits the increase is that over the least loss that an example has had in a draw; `yes` as
    the paper says, `by_place` as the authors' code does, which confuses the examples' logits.
    """

    flags = (
        *ReplayLearner.flags,
        Flag("subsample", integer(1), 50, "memories among which those that suffer most are sought"),
        Flag("disc_iters", integer(1), 1, "steps on each minibatch"),
        Flag(
            "compare_to_old_logits",
            str,
            "no",
            "compare with the least loss so far; by_place: that at the place in the list of eligible memories",
            choices=("no", "yes", "by_place"),
        ),
    )

    def build(self):
        super().build()
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws, ALJUNDI)
        compares = self.args.compare_to_old_logits != "no"
        self.old = OldLogits(self.args.memories, self.n_outputs) if compares else None

    def learn(self, batch, t):
        for _ in range(self.args.disc_iters):
            self.net.sgd_sum([CrossEntropy(batch), CrossEntropy(self.retrieve(batch, t))])
        slots = self.memory.remember_all(batch)
        if self.args.compare_to_old_logits == "yes":
            self.old.forget([slot - self.first_free_slot for slot in slots if slot is not None])

    def retrieve(self, batch, t):
        """The slots of the replay_batch_size examples of a draw that suffer most."""
        eligible = self.memory.of_other_tasks(t)
        drawn = self.engine.draws.sample(len(eligible), self.args.subsample)
        if not drawn:
            return []
        slots = [eligible[i] for i in drawn]
        before = self.net.losses(slots) if self.old is None else self.least_losses(drawn, slots)
        with self.net.tried():
            self.net.sgd(batch)
            after = self.net.losses(slots)
        worst = np.argsort(before - after, kind="stable")[: self.args.replay_batch_size]
        return [slots[i] for i in worst]

    def least_losses(self, drawn, slots):
        """Each example's loss or its least one before, if that is less; what is a new least one is noted."""
        by_place = self.args.compare_to_old_logits == "by_place"
        places = drawn if by_place else [slot - self.first_free_slot for slot in slots]
        now, old = self.net.losses(slots), self.old.losses(places, [self.examples.labels[slot] for slot in slots])
        outputs = self.net.outputs(slots)
        for i in np.flatnonzero(now < old):
            self.old.logits[places[i]] = torch.from_numpy(outputs[i])
        return np.minimum(now, old)

    def parts(self):
        old = {"old": self.old} if self.old else {}
        return {**super().parts(), "memory": self.memory, **old}
