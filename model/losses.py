"""What a step may go down: a sum of terms, each a weight times the mean loss of a batch (`Network.sgd_sum`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CrossEntropy:
    """weight * the mean cross-entropy of a batch (a list of slots).

    classes        those that compete, each label among them; None: all
    keeps_logits   after the step, stores the outputs of before it with the examples, as their `logits`
    """

    batch: list
    weight: float = 1.0
    classes: list | None = None
    keeps_logits: bool = False


@dataclass(frozen=True)
class SquaredError:
    """weight * the mean, over a batch (a list of slots) and the classes, of (outputs - stored logits)^2."""

    batch: list
    weight: float = 1.0
