"""EWC: Elastic Weight Consolidation. (Kirkpatrick et al., PNAS 2017; GEM's version)"""

from model.flags import MEMORY_STRENGTH, N_MEMORIES
from model.learner import Learner
from model.memory import FirstExamples


class Net(Learner):
    """Loss = CE + memory_strength * sum_past sum_i F_i (theta_i - theta*_i)^2.

    F is the squared gradient of the MEAN loss on a task's kept examples, not the mean of squared gradients (the Fisher
    diagonal): the published baseline's, kept.
    """

    flags = (*Learner.flags, N_MEMORIES, MEMORY_STRENGTH)

    def build(self):
        super().build()
        self.memory = FirstExamples(self.examples, self.first_free_slot, self.args.n_memories)

    def learn(self, batch, t):
        if self.memory.task not in (None, t):
            fisher = self.net.gradient(self.memory.slots) ** 2
            self.net.anchor(fisher, self.args.memory_strength)
        self.memory.remember(batch, t)
        self.net.sgd(batch)

    def parts(self):
        return {**super().parts(), "memory": self.memory}
