"""Independent: one small network per task, a baseline without interference."""

from model import networks
from model.flags import FINETUNE
from model.learner import Learner
from model.memory import LatestTask


class Net(Learner):
    """Online SGD on the task's own network; T networks together are as wide as one: n_hiddens // T units a layer.

    Kept from the original: task 0 never takes over another's weights, however late it comes; and where another task
    comes first, it takes over task 0's untrained ones.
    """

    flags = (*Learner.flags, FINETUNE)
    needs_task = True

    def build(self):
        self.nets = [self.task_network(t) for t in range(self.n_tasks)]
        self.latest = LatestTask(self.n_tasks)

    def task_network(self, t):
        """The network of task t; where classes belong to tasks, it has the task's classes alone."""
        share = self.n_tasks
        if self.args.class_ranges is None:
            return self.network(networks.for_data(self.args, self.n_inputs, self.n_outputs, share))
        start, stop = self.args.class_ranges[t]
        module = networks.for_data(self.args, self.n_inputs, stop - start, share)
        return self.network(networks.place_outputs(module, start, self.n_outputs))

    def learn(self, batch, t):
        if t != self.latest.task and t > 0 and self.args.finetune:
            self.take_over(self.nets[t], self.nets[self.latest.task])
        self.latest.task = t
        self.nets[t].sgd(batch)

    def take_over(self, net, other):
        """theta of another network; less its output layer where it has another number of classes."""
        known, given = net.state_dict(), other.state_dict()
        fitting = {name: value for name, value in given.items() if value.shape == known[name].shape}
        if len(fitting) == len(given):
            net.copy_from(other)
        else:
            net.load_state_dict(fitting)

    def network_of(self, t):
        return self.nets[t]

    def named_networks(self):
        return {f"nets.{t}.": net for t, net in enumerate(self.nets)}

    def parts(self):
        return {**super().parts(), "latest": self.latest}
