"""ER-ACE: Experience Replay with Asymmetric Cross-Entropy, for class-incremental streams.

Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022.
"""

from model.flags import Flag, yes_no
from model.learner import Learner, ReplayLearner
from model.losses import CrossEntropy
from model.memory import VITTER, ClassesSeen, Reservoir


class Net(Learner):
    """New examples compete among their own classes, drawn ones among all.

    Kept from the authors' code: from the largest class seen so far upwards all compete as well.
    """

    flags = (
        *ReplayLearner.flags,
        Flag("task_free", yes_no, False, "mask and replay in the first task, too", bare=True),
    )

    def build(self):
        super().build()
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws, VITTER)
        self.seen = ClassesSeen(self.n_outputs, self.n_tasks)

    def learn(self, batch, t):
        labels = [self.examples.labels[slot] for slot in batch]
        self.seen.see(labels, t)
        if t == self.seen.first_task and not self.args.task_free:
            self.net.sgd(batch)
        else:
            competing = sorted({*labels, *range(self.seen.largest, self.n_outputs)})
            draw = self.memory.draw(self.args.replay_batch_size)
            self.net.sgd_sum([CrossEntropy(batch, classes=competing), CrossEntropy(draw)])
        self.memory.remember_all(batch)

    def parts(self):
        return {**super().parts(), "memory": self.memory, "seen": self.seen}
