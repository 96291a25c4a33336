"""EWC: Elastic Weight Consolidation. (Kirkpatrick et al., PNAS 2017; GEM's version)"""

from model.flags import MEMORY_STRENGTH, N_MEMORIES
from model.learner import Learner


class Net(Learner):
    """Loss = CE + memory_strength * sum_past sum_i F_i (theta_i - theta*_i)^2.

    F is the squared gradient of the MEAN loss on a task's kept examples, not the mean of squared gradients (the Fisher
    diagonal): the published baseline's, kept.
    """

    flags = (*Learner.flags, N_MEMORIES, MEMORY_STRENGTH)

    def build(self):
        super().build()
        self.current_task = None
        self.kept = []  # slots of the first examples of the current task

    def learn(self, batch, t):
        if self.current_task not in (None, t):
            fisher = self.net.gradient(self.kept) ** 2
            self.net.anchor(fisher, self.args.memory_strength)
            self.kept = []
        self.current_task = t
        self.keep(batch)
        self.net.sgd(batch)

    def keep(self, batch):
        """The first n_memories examples of a task: whole minibatches until full, then cut; the first one whole."""
        kept, limit = len(self.kept), self.args.n_memories
        room = len(batch) if not kept else max(limit - kept, 0)
        for example in batch[:room]:
            slot = self.first_free_slot + len(self.kept)
            self.examples.copy(example, slot)
            self.kept.append(slot)

    def own_state(self):
        return ("current_task", "kept")

    def load_state(self, state):
        super().load_state(state)
        self.kept = [int(slot) for slot in self.kept]
        there = set(self.kept) <= set(state["parts"]["examples"]["slots"])
        if not there or not isinstance(self.current_task, int | None):
            raise ValueError("it keeps examples that are not there, or of no task")
