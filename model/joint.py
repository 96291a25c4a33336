"""Joint training, the upper bound: the same network and number of steps, on examples of all tasks at once."""

from model.learner import Learner


class Net(Learner):
    """SGD on the stream, whose minibatches, each of one task, come in random order: nothing is left to forget."""

    mixes_tasks = True

    def learn(self, batch, t):
        self.net.sgd(batch)

    def remarks(self):
        return ["note: joint learns all tasks at once; LA, BTI and FWT compare parts of its run, not tasks"]
