"""Independent: one small network per task, a baseline without interference."""

from model import networks
from model.flags import FINETUNE
from model.learner import Learner


class Net(Learner):
    """Online SGD on the task's own network; T networks together are as wide as one: n_hiddens // T units a layer."""

    flags = (*Learner.flags, FINETUNE)

    def build(self):
        self.nets = [self.task_network(t) for t in range(self.n_tasks)]
        self.active = 0

    def task_network(self, t):
        """The network of task t; where classes belong to tasks, it has the task's classes alone."""
        share = self.n_tasks
        if self.args.class_ranges is None:
            return self.network(networks.for_data(self.args, self.n_inputs, self.n_outputs, share))
        start, stop = self.args.class_ranges[t]
        module = networks.for_data(self.args, self.n_inputs, stop - start, share)
        return self.network(networks.place_outputs(module, start, self.n_outputs))

    def learn(self, batch, t):
        if t != self.active and t > 0 and self.args.finetune:
            self.nets[t].copy_from(self.nets[self.active])
        self.active = t
        self.nets[t].sgd(batch)

    def network_of(self, t):
        return self.nets[t]

    def named_networks(self):
        return {f"nets.{t}.": net for t, net in enumerate(self.nets)}

    def own_state(self):
        return ("active",)

    def load_state(self, state):
        super().load_state(state)
        self.active = int(self.active)
        if self.active not in range(self.n_tasks):
            raise ValueError(f"its task is {self.active}, of {self.n_tasks}")
