"""GEM: Gradient Episodic Memory. (Lopez-Paz & Ranzato, NeurIPS 2017, Algorithm 1)"""

import numpy as np
import quadprog

from errors import UserError
from model.flags import MEMORY_STRENGTH, N_MEMORIES
from model.learner import Learner
from model.memory import TaskRings


class Net(Learner):
    """A step that would increase the loss on a past task's memory is projected to one that does not (eq. 8-12)."""

    flags = (*Learner.flags, N_MEMORIES, MEMORY_STRENGTH)

    def build(self):
        if self.args.n_memories < 1:
            raise UserError("--n_memories 0: gem keeps examples of every task; give --n_memories 1 or more")
        super().build()
        self.memory = TaskRings(self.examples, self.first_free_slot, self.args.n_memories)
        self.qp_repairs = 0

    def learn(self, batch, t):
        self.memory.remember(batch, t)
        past = self.memory.past(t)
        if not past:
            self.net.sgd(batch)
            return
        G = self.net.task_gradients(past)
        g = self.net.gradient(batch)
        if G.interferes(g):
            g = self.project(g, G)
        self.net.descend(g)

    def project(self, g, G):
        """G^T v* + g with v* = argmin 1/2 v^T G G^T v + (G g)^T v subject to v >= memory_strength. (eq. 11)"""
        gram, Gg = G.gram(), G.dot(g)
        if not (np.isfinite(gram).all() and np.isfinite(Gg).all()):
            return g  # diverged: the loss will say so
        return G.combine(self.solve_qp(0.5 * (gram + gram.T), Gg), g)

    def solve_qp(self, gram, Gg):
        """v*. Dependent gradients make the Gram matrix singular: then it gets the smallest diagonal that works."""
        n = len(gram)
        diagonal = 0.0
        while True:
            try:
                return quadprog.solve_qp(
                    gram + diagonal * np.eye(n), -Gg, np.eye(n), np.full(n, self.args.memory_strength)
                )[0]
            except ValueError:  # "matrix G is not positive definite"
                self.qp_repairs += int(diagonal == 0.0)  # a plain number, which can be saved
                diagonal = 10 * diagonal or 1e-10 * max(gram.trace() / n, np.finfo(float).tiny)

    def notes(self):
        return {"qp_repairs": self.qp_repairs}

    def parts(self):
        return {**super().parts(), "memory": self.memory}

    def own_state(self):
        return ("qp_repairs",)
