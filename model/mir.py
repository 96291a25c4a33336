"""MIR: Experience Replay with Maximally Interfered Retrieval. (Aljundi et al., NeurIPS 2019, Algorithm 1)"""

import numpy as np

from model.flags import SHAPE, Flag, integer
from model.learner import Learner, ReplayLearner
from model.losses import CrossEntropy
from model.memory import ALJUNDI, LeastLosses, OldLogits, Reservoir


class Net(Learner):
    """Replays those of a draw from other tasks whose loss a step on the new examples would increase most.

    With --compare_to_old_logits the increase is that over the least loss that an example has had in a draw; `yes` as
    the paper says, `by_place` as the authors' code does, which confuses the examples' logits, and begins with zeros.
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
            role=SHAPE,
        ),
    )

    def build(self):
        super().build()
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws, ALJUNDI)
        self.old = {
            "no": lambda: None,
            "yes": lambda: LeastLosses(self.args.memories),
            "by_place": lambda: OldLogits(self.args.memories, self.n_outputs),
        }[self.args.compare_to_old_logits]()

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
        before = self.losses_before(drawn, slots)
        with self.net.tried():
            self.net.sgd(batch)
            after = self.net.losses(slots)
        worst = np.argsort(before - after, kind="stable")[: self.args.replay_batch_size]
        return [slots[i] for i in worst]

    def losses_before(self, drawn, slots):
        """Each example's loss, or the least one that it is compared with; a new least one is noted."""
        now = self.net.losses(slots)
        if self.args.compare_to_old_logits == "by_place":
            return self.old.lower(drawn, now, self.net.outputs(slots), [self.examples.labels[slot] for slot in slots])
        return self.old.lower([slot - self.first_free_slot for slot in slots], now) if self.old else now

    def parts(self):
        old = {"old": self.old} if self.old else {}
        return {**super().parts(), "memory": self.memory, **old}
