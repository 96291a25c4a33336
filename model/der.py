"""DER: Dark Experience Replay.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020, Algorithm 1.
"""

from model.flags import Flag, number
from model.learner import Learner, ReplayLearner
from model.losses import CrossEntropy, SquaredError
from model.memory import VITTER, Reservoir

ALPHA = Flag("alpha", number(0), 0.5, "weight of the squared error to the logits of old")


class Net(Learner):
    """Loss = CE + alpha * the mean squared error of drawn examples' outputs to those when they were learned."""

    flags = (*ReplayLearner.flags, ALPHA)
    keeps_logits = True

    def build(self):
        super().build()
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws, VITTER)

    def learn(self, batch, t):
        self.net.sgd_sum([CrossEntropy(batch, keeps_logits=True), *self.replay()])
        self.memory.remember_all(batch)  # with their logits of before the step

    def replay(self):
        """The terms of memory."""
        return [SquaredError(self.memory.draw(self.args.replay_batch_size), self.args.alpha)]

    def parts(self):
        return {**super().parts(), "memory": self.memory}
