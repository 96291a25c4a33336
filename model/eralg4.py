"""ER: Experience Replay with a reservoir. (The paper's Algorithm 4)"""

from model.learner import ReplayLearner


class Net(ReplayLearner):
    """One SGD step on the mean loss of k-1 draws from memory and the current example."""

    def learn_one(self, current):
        self.net.sgd([*self.memory.draw(self.n_draws), current])
        self.memory.remember(current)
