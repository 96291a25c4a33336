"""DER++: Dark Experience Replay with labels. (Buzzega et al., NeurIPS 2020, Algorithm 2)"""

from model.der import Net as DER
from model.flags import BETA
from model.losses import CrossEntropy


class Net(DER):
    """DER, and beta * CE of further draws."""

    flags = (*DER.flags, BETA)

    def replay(self):
        return [*super().replay(), CrossEntropy(self.memory.draw(self.args.replay_batch_size), self.args.beta)]
