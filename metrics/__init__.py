"""What an accuracy matrix says of a learner: retained and learning accuracy, transfer and interference.

Pure functions of the two things that a run records (GEM's format):

    result_t  (E,)    the task being learned at each evaluation
    result_a  (E, T)  the accuracy on each task's test set at each evaluation; row 0 is the untrained net

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, section 2 (R, ACC, BWT, FWT);
Riemer et al., ICLR 2019, section 5 (RA, LA, BTI).
Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022 (average
anytime accuracy).
Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, section 4 (forgetting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

NAMES = ("RA", "LA", "BTI", "FWT", "AAA", "forgetting")  # of the summaries of Metrics


@dataclass(frozen=True)
class Metrics:
    """The accuracy matrix of a run and its summaries, all float32 in 0..1; T tasks, of which K were learned.

    Tensors, or NumPy arrays where result_a was one.

    order     (K,)    the tasks in the order in which they were learned
    baseline  (T,)    accuracy of the untrained net
    matrix    (K, T)  R[i, j] = accuracy on the j-th task after learning the i-th; columns in order of presentation
    seen      (E,)    mean accuracy over the tasks seen so far, the one being learned included, at each evaluation
    """

    order: list
    baseline: torch.Tensor
    matrix: torch.Tensor
    seen: torch.Tensor

    @property
    def final(self):
        return self.matrix[-1]

    @property
    def learned(self):
        """R[i, i]: the accuracy on each task right after it was learned."""
        return self.matrix.diagonal()

    @property
    def RA(self):
        """Retained accuracy: mean of the final row."""
        return self.final.mean()

    @property
    def LA(self):
        """Learning accuracy: mean of R[i, i]."""
        return self.learned.mean()

    @property
    def BTI(self):
        """Backward transfer and interference: mean of R[-1, j] - R[j, j] over the tasks learned."""
        return (self.final[: len(self.order)] - self.learned).mean()

    @property
    def FWT(self):
        """Forward transfer: sum over j >= 1 of R[j-1, j] - baseline[j], over the number of tasks (the first has 0)."""
        gain = 0 * self.baseline[: len(self.order)]
        for j in range(1, len(self.order)):
            gain[j] = self.matrix[j - 1, j] - self.baseline[j]
        return gain.mean()

    @property
    def AAA(self):
        """Average anytime accuracy: mean of `seen` over all evaluations but that of the untrained net."""
        return self.seen[-max(len(self.seen) - 1, 1) :].mean()

    @property
    def forgetting(self):
        """Mean over the tasks but the last of max over i < K - 1 of R[i, j], less R[-1, j]; 0 where one was learned.

        Below zero where a task was never better than at the end.
        """
        drops = [max(rows[:-1]) - rows[-1] for rows in self.matrix.T[: len(self.order) - 1].tolist()]
        return sum(drops) / max(len(drops), 1)

    @property
    def stats(self):
        """[RA, BTI, FWT], what the original saves."""
        return [self.RA, self.BTI, self.FWT]

    def as_text(self):
        """The original's .txt: baseline, `|`, the rows of R, an empty line, three summaries."""

        def row(values):
            return " ".join(f"{value:.4f}" for value in values.tolist())

        lines = [row(self.baseline), "|", *map(row, self.matrix), ""]
        lines += [f"Final Accuracy: {self.RA:.4f}", f"Backward: {self.BTI:.4f}", f"Forward:  {self.FWT:.4f}"]
        return "\n".join(lines) + "\n"


def summarise(result_t, result_a):
    """Metrics of a run, from its evaluations.

    The i-th row of R is the last evaluation before result_t changes for the i-th time, the last row the very last one.
    Columns follow the order of presentation, so a shuffled run is judged like any other (tasks that were never learned
    come last, by number).

    result_a may be a tensor, lists, or a NumPy array. Raises ValueError where the two do not belong together or a task
    comes back after another.
    """
    if isinstance(result_a, np.ndarray):
        result_a = result_a.astype(np.float32)
    else:
        import torch  # slow to import: who has arrays need not wait

        result_a = torch.as_tensor(result_a, dtype=torch.float32)
    if result_a.ndim != 2 or len(result_t) != len(result_a) or 0 in result_a.shape:
        raise ValueError(
            f"result_t ({len(result_t)},) and result_a {tuple(result_a.shape)} must be (E,) and (E, T), none empty"
        )
    current = [int(t) for t in result_t]
    ends = [i for i in range(len(current)) if i + 1 == len(current) or current[i] != current[i + 1]]
    order = [current[i] for i in ends]
    n_tasks = result_a.shape[1]
    if len(set(order)) < len(order) or not all(0 <= t < n_tasks for t in order):
        raise ValueError(f"result_t must name each task of 0..{n_tasks - 1} in one run at most, not {order}")
    columns = order + [t for t in range(n_tasks) if t not in order]
    result_a = result_a[:, columns]
    rank = [order.index(t) for t in current]
    means = result_a.cumsum(1) / (0 * result_a + 1).cumsum(1)  # over the first 1, 2, … tasks
    return Metrics(order, result_a[0], result_a[ends], means[range(len(rank)), rank])
