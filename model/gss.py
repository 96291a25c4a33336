"""GSS-Greedy: Gradient based Sample Selection, as its authors' code has it.

Aljundi et al., "Gradient based sample selection for online continual learning", NeurIPS 2019; Algorithm 2 but for the
differences that docs/successors.md names.
"""

import numpy as np

from model.flags import SHAPE, Flag, integer, number
from model.learner import Learner, ReplayLearner
from model.memory import ScoredMemory

FIRST_SCORE = 0.1  # of those that enter an empty memory, which can be compared with nothing


class Net(Learner):
    """ER with a memory of examples whose gradients differ.

    An example's score is the largest cosine of its gradient and those of some memories. When the memory is full, and no
    gradient of memories is as close as change_th to the candidates', they replace memories of a high score.
    """

    flags = (
        *ReplayLearner.flags,
        Flag("n_iter", integer(1), 3, "times that a minibatch is learned, each time with a replayed one"),
        Flag("candidates", integer(1), 10, "new examples that apply for memory together", role=SHAPE),
        Flag("n_compared", integer(1), 10, "batches of memories with whose gradients new ones are compared"),
        Flag("change_th", number(), 0.0, "memory changes if the candidates' largest cosine is less"),
    )

    def build(self):
        super().build()
        self.memory = ScoredMemory(
            self.examples, self.first_free_slot, self.args.memories, self.args.candidates, self.engine.draws
        )

    def learn(self, batch, t):
        k = self.args.replay_batch_size
        replayed = self.memory.batches(k) if k else []
        for i in range(self.args.n_iter):
            self.net.sgd(batch)
            if replayed:
                self.net.sgd(replayed[i % len(replayed)])
        for example in batch:
            candidates = self.memory.wait(example)
            if candidates:
                self.select(candidates)

    def select(self, candidates):
        """Candidates enter memory while there is room; then they may replace others in it."""
        compared = self.memory.batches(max(1, self.args.replay_batch_size))[: self.args.n_compared]
        if not compared:
            self.memory.add(candidates, [FIRST_SCORE] * len(candidates))
            return
        closest, closest_of_all = self.closest(candidates, compared)
        if not np.isfinite(closest).all():
            return  # diverged: the loss will say so
        if self.memory.has_room():
            self.memory.add(candidates, closest)
        elif closest_of_all < self.args.change_th:
            self.memory.compete(candidates, closest)

    def closest(self, candidates, compared):
        """The largest cosine with a gradient of those compared: of each candidate's, (B,), and of their mean."""
        n = len(compared)
        batches = [*compared, *([candidate] for candidate in candidates)]
        gram = self.net.task_gradients(batches, training=False).gram()
        squares, of_mean = gram.diagonal(), gram[n:, n:].mean()
        cosines = cosine(gram[n:, :n], squares[n:, None], squares[:n])
        return cosines.max(axis=1), cosine(gram[n:, :n].mean(axis=0), of_mean, squares[:n]).max()

    def parts(self):
        return {**super().parts(), "memory": self.memory}


def cosine(products, squares, others):
    """Cosines from inner products and squared norms; 0 where a gradient is 0."""
    norms = np.sqrt(np.maximum(squares * others, 0))
    return np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)
