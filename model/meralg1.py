"""MER: Meta-Experience Replay. (The paper's Algorithm 1)"""

from model.flags import BATCHES_PER_EXAMPLE, BETA, GAMMA
from model.learner import ReplayLearner


class Net(ReplayLearner):
    """s batches per example, Reptile within and across batches."""

    flags = (*ReplayLearner.flags, GAMMA, BETA, BATCHES_PER_EXAMPLE)

    def learn_one(self, current):
        with self.net.reptile(self.args.gamma):  # across batches
            for _ in range(self.args.batches_per_example):  # i = 1..s
                with self.net.reptile(self.args.beta):  # within a batch
                    self.net.sgd_each([current, *self.memory.draw(self.n_draws)])  # one step each, in order
        self.memory.remember(current)
