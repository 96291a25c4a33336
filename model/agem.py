"""A-GEM: Averaged Gradient Episodic Memory. (Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019)"""

from model.flags import SHAPE, Flag, integer, yes_no
from model.learner import Learner, ReplayLearner
from model.memory import VITTER, PastTasks, Reservoir


class Net(Learner):
    """A step that would increase the loss on a random batch of past tasks loses its part along that gradient (eq. 11).

    With --past_only no the random batch is one of all examples so far (A-GEM-R).
    """

    flags = (
        *ReplayLearner.flags,
        Flag("past_only", yes_no, True, "memories are of past tasks alone", role=SHAPE, bare=True),
        Flag("task_memories", integer(1), 250, "random examples of a task that enter when it is over", role=SHAPE),
    )

    def build(self):
        super().build()
        first, capacity, draws = self.first_free_slot, self.args.memories, self.engine.draws
        if self.args.past_only:
            self.memory = PastTasks(self.examples, first, capacity, self.args.task_memories, draws, VITTER)
        else:
            self.memory = Reservoir(self.examples, first, capacity, draws, VITTER)

    def learn(self, batch, t):
        if self.args.past_only:
            self.memory.begin(t)
        draw = self.memory.draw(self.args.replay_batch_size)
        if draw:
            ref = self.net.task_gradients([draw])
            g = self.net.gradient(batch)
            if ref.interferes(g):
                g = ref.combine(-ref.dot(g) / ref.gram()[0], g)
            self.net.descend(g)
        else:
            self.net.sgd(batch)
        self.memory.remember_all(batch)

    def parts(self):
        return {**super().parts(), "memory": self.memory}
