"""MER with the current example learned at its own rate. (The paper's Algorithm 7)"""

from model.flags import GAMMA, S
from model.learner import ReplayLearner


class Net(ReplayLearner):
    """Reptile over one SGD step for each of the current example (its loss times s) and k-1 draws, in random order."""

    flags = (*ReplayLearner.flags, GAMMA, S)

    def learn_one(self, current):
        if self.memory.size:  # the very first example is only remembered
            with self.net.reptile(self.args.gamma):
                batch = [current, *self.memory.draw(self.n_draws)]
                order = self.engine.draws.shuffle(len(batch))
                weights = [self.args.s if i == 0 else 1.0 for i in order]
                self.net.sgd_each([batch[i] for i in order], weights)
        self.memory.remember(current)
