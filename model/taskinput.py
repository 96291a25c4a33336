"""Task input: one network whose first layer is the task's own. (The paper's baseline, after GEM's "multimodal")"""

from errors import UserError
from model import networks
from model.learner import Learner


class Net(Learner):
    """Online SGD; the first of the `n_layers` hidden layers is the task's own, the others are shared."""

    takes_networks = False
    needs_task = True

    def build(self):
        args = self.args
        if args.image_shape:
            raise UserError(f"taskinput takes plain vectors, not images of {args.image_shape}: choose another --model")
        self.net = self.network(
            networks.TaskInputMLP(self.n_inputs, args.n_hiddens, args.n_layers, self.n_outputs, self.n_tasks)
        )

    def learn(self, batch, t):
        self.net.sgd(batch)

    def named_networks(self):
        return {"": self.net}
