"""MER: Meta-Experience Replay. (The paper's Algorithm 1)"""

from model.flags import Flag, number
from model.learner import BATCHES_PER_EXAMPLE, GAMMA, ReplayLearner


class Net(ReplayLearner):
    """s batches per example, Reptile within and across batches."""

    flags = (
        *ReplayLearner.flags,
        GAMMA,
        Flag("beta", number(0), 1.0, "Reptile step within a batch"),
        BATCHES_PER_EXAMPLE,
    )

    def learn_one(self, current):
        with self.net.reptile(self.args.gamma):  # across batches
            for _ in range(self.args.batches_per_example):  # i = 1..s
                with self.net.reptile(self.args.beta):  # within a batch
                    self.net.sgd_each([current, *self.memory.draw(self.k)])  # one step each, in order
        self.memory.remember(current)
