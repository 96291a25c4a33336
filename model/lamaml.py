"""La-MAML: Look-ahead MAML, first order. (Gupta, Yadav & Paull, NeurIPS 2020, Algorithm 1)

La-MAML   as it stands                          learns a learning rate for each weight, and goes down with it
Sync      --sync_update yes                     learns the rates, and goes down with opt_wt
C-MAML    --sync_update yes --learn_lr no       rates that stay
"""

from model.flags import MEMORIES, N_HIDDENS, N_LAYERS, REPLAY_BATCH_SIZE, SHAPE, Flag, integer, number, yes_no
from model.learner import Learner
from model.memory import Reservoir, TaskStartReservoir


class Net(Learner):
    """A path of one step for each new example, from each point of which the loss of old and new ones is looked at.

    With theta_i = theta_{i-1} - [alpha]+ * grad l(theta_{i-1}; x_i) for x_i of the minibatch, and L the mean over i of
    the loss at theta_i of draws and the minibatch, alpha goes down dL/dalpha, and then theta_0 down dL/dtheta_0, both
    shortened to grad_clip_norm.
    """

    flags = (
        *(N_HIDDENS, N_LAYERS, MEMORIES, REPLAY_BATCH_SIZE),
        Flag("glances", integer(1), 5, "times that a minibatch is learned"),
        Flag("alpha_init", number(), 0.15, "learning rate of every weight at first"),
        Flag("learn_lr", yes_no, True, "learn the learning rates", bare=True),
        Flag("opt_lr", number(0), 0.3, "learning rate of the learning rates"),
        Flag("sync_update", yes_no, False, "go down with opt_wt, not with the learning rates", bare=True),
        Flag("opt_wt", number(0), 0.1, "learning rate of a --sync_update"),
        Flag("grad_clip_norm", number(above=0), 2.0, "largest norm of the gradient of the weights, and of the rates"),
        Flag("use_old_task_memory", yes_no, False, "draw from memory as the task found it", role=SHAPE, bare=True),
    )

    def build(self):
        super().build()
        memory = TaskStartReservoir if self.args.use_old_task_memory else Reservoir
        self.memory = memory(self.examples, self.first_free_slot, self.args.memories, self.engine.draws)
        self.rates = self.net.rates(self.args.alpha_init)

    def learn(self, batch, t):
        if self.args.use_old_task_memory:
            self.memory.begin(t)
        for glance in range(self.args.glances):
            batch = [batch[i] for i in self.engine.draws.shuffle(len(batch))]
            self.look_ahead(batch, [*self.memory.draw(self.args.replay_batch_size), *batch])
            if glance == 0:
                self.memory.remember_all(batch)
            if self.args.learn_lr:
                self.rates.learn(self.args.opt_lr, self.args.grad_clip_norm)
            self.rates.descend(self.args.grad_clip_norm, self.args.opt_wt if self.args.sync_update else None)

    def look_ahead(self, batch, query):
        """The path down the examples of the batch, one by one, and its looks at the query; theta stays theta_0."""
        self.rates.begin()
        with self.net.tried():
            for example in batch:
                self.rates.step([example])
                self.rates.look(query, 1 / len(batch))

    def parts(self):
        return {**super().parts(), "memory": self.memory, "rates": self.rates}
