"""ER with tasks: Experience Replay, every task in the batch counting the same. (The paper's Algorithm 5)"""

from model.learner import ReplayLearner


class Net(ReplayLearner):
    """One SGD step on the sum, over the tasks in the batch, of the task's mean loss."""

    def learn_one(self, current):
        batch = [current, *self.memory.draw(self.n_draws)]
        self.net.sgd_groups(self.examples.by_task(batch))
        self.memory.remember(current)
