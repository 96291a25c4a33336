"""MER with minibatches, for what one example a step does not train: networks with batch norm. (arXiv 2508.01908)

Abbes et al. 2025, "Revisiting Replay and Gradient Alignment for Continual Pre-Training of Large Language Models":
replay, and Reptile over every k steps; Algorithm 6 of Riemer et al. with a minibatch in each step.
"""

from model.flags import GAMMA, Flag, integer
from model.learner import Learner, ReplayLearner
from model.memory import Reservoir


class Net(Learner):
    """One SGD step on the mean loss of draws and new examples; Reptile over every k steps, across minibatches.

    Within a block of k, predictions are those of the latest step; a last block of fewer is not interpolated.
    """

    flags = (
        *ReplayLearner.flags,
        GAMMA,
        Flag("reptile_every", integer(1), 10, "SGD steps on minibatches that one Reptile step spans"),
    )

    def build(self):
        super().build()
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws)
        self.steps, self.theta0 = 0, None  # taken in this block, and the weights before it

    def learn(self, batch, t):
        if self.steps == 0:
            self.begin_block()
        self.net.sgd([*self.memory.draw(self.args.replay_batch_size), *batch])
        self.steps += 1
        if self.steps >= self.args.reptile_every:
            self.end_block()
        for example in batch:
            self.memory.remember(example)

    def begin_block(self):
        self.theta0 = self.net.state_dict()
        self.net.begin_reptile()

    def end_block(self):
        self.net.end_reptile(self.args.gamma)
        self.steps, self.theta0 = 0, None

    # state

    def parts(self):
        return {**super().parts(), "memory": self.memory}

    def own_state(self):
        return ("steps", "theta0")

    def load_state(self, state):
        if self.steps:
            self.end_block()
        if state["own"]["steps"]:  # a block begins at theta0
            self.net.load_state_dict(state["own"]["theta0"])
            self.begin_block()
        super().load_state(state)
