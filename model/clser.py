"""CLS-ER: Complementary Learning System based Experience Replay. (Arani, Sarfraz & Zonooz, ICLR 2022, Algorithm 1)"""

from copy import deepcopy

import numpy as np
import torch

from model import networks
from model.flags import Flag, number
from model.learner import Learner, ReplayLearner
from model.losses import CrossEntropy, SquaredError
from model.memory import VITTER, Reservoir


class Net(Learner):
    """ER whose outputs for what is drawn stay close to those of two moving averages of its weights, plastic and stable.

    Loss = CE of draws and new examples + reg_weight * the mean squared error of the draws' outputs to those of the
    average that is surer of an example's label. The stable average answers.
    """

    flags = (
        *ReplayLearner.flags,
        Flag("reg_weight", number(0), 0.1, "weight of the squared error to the moving averages' outputs"),
        Flag("plastic_model_update_freq", number(0, most=1), 0.9, "chance that the plastic average moves"),
        Flag("plastic_model_alpha", number(0, most=1), 0.999, "share of the plastic average that stays"),
        Flag("stable_model_update_freq", number(0, most=1), 0.7, "chance that the stable average moves"),
        Flag("stable_model_alpha", number(0, most=1), 0.999, "share of the stable average that stays"),
    )
    keeps_logits = True

    def build(self):
        module = networks.for_data(self.args, self.n_inputs, self.n_outputs)
        self.plastic, self.stable = (self.network(deepcopy(module)) for _ in range(2))
        self.net = self.network(module)
        self.memory = Reservoir(self.examples, self.first_free_slot, self.args.memories, self.engine.draws, VITTER)
        self.steps = 0

    def learn(self, batch, t):
        draw = self.memory.draw(self.args.replay_batch_size)
        if draw:
            self.examples.store_logits(draw, self.teach(draw))
        self.net.sgd_sum([CrossEntropy([*batch, *draw]), SquaredError(draw, self.args.reg_weight)])
        self.memory.remember_all(batch)
        self.steps += 1
        self.move(self.plastic, self.args.plastic_model_update_freq, self.args.plastic_model_alpha)
        self.move(self.stable, self.args.stable_model_update_freq, self.args.stable_model_alpha)

    def teach(self, draw):
        """(B, C) outputs for the draws of the average that is surer of the label; on a tie, of the plastic one."""
        plastic, stable = self.plastic.outputs(draw), self.stable.outputs(draw)
        labels = [self.examples.labels[slot] for slot in draw]
        sure_plastic, sure_stable = (
            torch.from_numpy(outputs).softmax(1)[range(len(draw)), labels].numpy() for outputs in (plastic, stable)
        )
        return np.where((sure_stable > sure_plastic)[:, None], stable, plastic)

    def move(self, average, frequency, alpha):
        """With this chance: average <- a * average + (1 - a) * theta, a = alpha, and less in the first steps."""
        if self.engine.draws.random() < frequency:
            average.average(self.net, min(1 - 1 / (self.steps + 1), alpha))

    def network_of(self, t):
        return self.stable

    def named_networks(self):
        return {**super().named_networks(), "plastic.": self.plastic, "stable.": self.stable}

    def parts(self):
        return {**super().parts(), "memory": self.memory}

    def own_state(self):
        return ("steps",)

    def load_state(self, state):
        steps = state["own"]["steps"]
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"it took {steps} steps")
        super().load_state(state)
