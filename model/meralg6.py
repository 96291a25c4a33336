"""MER, one big batch: the current example last. (The paper's Algorithm 6)"""

from model.flags import BATCHES_PER_EXAMPLE, GAMMA
from model.learner import ReplayLearner


class Net(ReplayLearner):
    """Reptile over one SGD step for each of k-1 draws and then the current example."""

    flags = (*ReplayLearner.flags, GAMMA, BATCHES_PER_EXAMPLE)

    def learn_one(self, current):
        self.memory.discard_draw(self.n_draws)
        for _ in range(self.args.batches_per_example):
            with self.net.reptile(self.args.gamma):
                self.net.sgd_each([*self.memory.draw(self.n_draws), current])
        self.memory.remember(current)
