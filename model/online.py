"""Online: SGD on the stream, nothing else."""

from model.learner import Learner


class Net(Learner):
    """One SGD step on the mean loss of each minibatch."""

    def learn(self, batch, t):
        self.net.sgd(batch)
