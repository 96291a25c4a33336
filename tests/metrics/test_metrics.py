"""The summaries and the .txt against plain NumPy, written from their definitions."""

import numpy as np
import pytest
import torch

import metrics


def independent(result_t, result_a):
    """(baseline, R, RA, LA, BTI, FWT), rows and columns in order of presentation."""
    result_a = np.asarray(result_a, dtype=np.float64)
    rows, order = [], []
    for i, t in enumerate(result_t):
        if i + 1 == len(result_t) or result_t[i + 1] != t:
            rows.append(i)
            order.append(t)
    R, baseline, T = result_a[np.ix_(rows, order)], result_a[0, order], len(order)
    RA = sum(R[T - 1, j] for j in range(T)) / T
    LA = sum(R[j, j] for j in range(T)) / T
    BTI = sum(R[T - 1, j] - R[j, j] for j in range(T)) / T
    FWT = sum(R[j - 1, j] - baseline[j] for j in range(1, T)) / T
    return baseline, R, RA, LA, BTI, FWT


def anytime_and_forgetting(result_t, result_a):
    """(AAA, forgetting) as their papers write them, task by task."""
    order, means, after = [], [], []
    for i, (t, row) in enumerate(zip(result_t, result_a, strict=True)):
        order += [] if t in order else [t]
        if i > 0 or len(result_t) == 1:
            means.append(sum(float(row[j]) for j in order) / len(order))
        if i + 1 == len(result_t) or result_t[i + 1] != t:
            after.append(row)
    drops = [max(float(row[j]) for row in after[:-1]) - float(after[-1][j]) for j in order[:-1]]
    return sum(means) / len(means), sum(drops) / len(drops) if drops else 0.0


def run_of(n_tasks, per_task, order, seed=0):
    """An invented run: result_t, with the first task's first row before it is learned, and random accuracies."""
    result_t = [t for t in order for _ in range(per_task)] + [order[-1]]
    return result_t, np.random.default_rng(seed).random((len(result_t), n_tasks)).astype(np.float32)


@pytest.mark.parametrize("n_tasks,per_task", [(1, 1), (1, 4), (2, 1), (5, 3), (20, 11)])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("kind", [torch.tensor, list, np.float32])
def test_metrics(n_tasks, per_task, shuffled, kind):
    order = np.random.default_rng(n_tasks).permutation(n_tasks).tolist() if shuffled else list(range(n_tasks))
    result_t, result_a = run_of(n_tasks, per_task, order)
    found = metrics.summarise(kind(result_t), kind(result_a.tolist()))
    baseline, R, RA, LA, BTI, FWT = independent(result_t, result_a)
    assert found.order == order
    np.testing.assert_array_equal(np.asarray(found.baseline), baseline.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(found.matrix), R.astype(np.float32))
    values = [float(getattr(found, name)) for name in ("RA", "LA", "BTI", "FWT")]
    np.testing.assert_allclose(values, [RA, LA, BTI, FWT], atol=1e-6)
    expected = anytime_and_forgetting(result_t, result_a)
    np.testing.assert_allclose([float(found.AAA), float(found.forgetting)], expected, atol=1e-6)
    assert metrics.NAMES == ("RA", "LA", "BTI", "FWT", "AAA", "forgetting")
    assert found.stats == [found.RA, found.BTI, found.FWT]
    assert found.as_text() == text_of(baseline, R, RA, BTI, FWT)


def text_of(baseline, R, RA, BTI, FWT):
    rows = [" ".join(f"{value:.4f}" for value in row) for row in [baseline, *R]]
    summary = f"Final Accuracy: {RA:.4f}\nBackward: {BTI:.4f}\nForward:  {FWT:.4f}\n"
    return rows[0] + "\n|\n" + "".join(row + "\n" for row in rows[1:]) + "\n" + summary


def test_by_hand():
    """Two tasks, the second first: R = [[.9, .2], [.5, .8]] in order of presentation, baseline [.1, .3]."""
    result_t = [1, 1, 0, 0]
    result_a = [[0.3, 0.1], [0.2, 0.9], [0.4, 0.7], [0.8, 0.5]]
    found = metrics.summarise(result_t, result_a)
    assert found.as_text() == (
        "0.1000 0.3000\n|\n0.9000 0.2000\n0.5000 0.8000\n\n"
        "Final Accuracy: 0.6500\nBackward: -0.2000\nForward:  -0.0500\n"
    )
    assert float(found.LA) == pytest.approx(0.85)
    assert float(found.AAA) == pytest.approx((0.9 + (0.4 + 0.7) / 2 + (0.8 + 0.5) / 2) / 3)  # rows 1 to 3
    assert float(found.forgetting) == pytest.approx(0.9 - 0.5)


def test_an_order_of_presentation_changes_nothing_but_names():
    """The same learning with the tasks renamed has the same metrics."""
    result_t, result_a = run_of(6, 4, list(range(6)))
    new = np.random.default_rng(3).permutation(6)
    renamed = np.empty_like(result_a)
    renamed[:, new] = result_a
    one, other = metrics.summarise(result_t, result_a), metrics.summarise(new[result_t], renamed)
    assert one.stats == other.stats and one.as_text() == other.as_text()
    assert all(getattr(one, name) == getattr(other, name) for name in metrics.NAMES)


def test_a_run_that_broke_off_is_judged_by_what_it_learned():
    """Two of four tasks, the later in the order first; tasks never learned stand last."""
    result_t, result_a = [2, 2, 0], np.arange(12, dtype=np.float32).reshape(3, 4) / 12
    found = metrics.summarise(result_t, result_a)
    assert found.order == [2, 0]
    np.testing.assert_array_equal(np.asarray(found.matrix), result_a[1:][:, [2, 0, 1, 3]])
    assert float(found.LA) == pytest.approx((6 + 8) / 2 / 12)
    assert float(found.BTI) == pytest.approx(((10 - 6) + 0) / 2 / 12)
    assert float(found.FWT) == pytest.approx((4 - 0) / 2 / 12)
    assert float(found.forgetting) == pytest.approx((6 - 10) / 12)  # it got better


@pytest.mark.parametrize(
    "result_t,result_a,message",
    [
        ([0, 0], [[0.5]], r"result_t \(2,\) and result_a \(1, 1\)"),
        ([], [], "must be"),
        ([0], [0.5], "must be"),
        ([0, 1, 0], [[0.5, 0.5]] * 3, r"one run at most, not \[0, 1, 0\]"),
        ([0, 2], [[0.5, 0.5]] * 2, r"tasks? of 0\.\.1"),
    ],
)
def test_what_is_no_run(result_t, result_a, message):
    with pytest.raises(ValueError, match=message):
        metrics.summarise(result_t, result_a)
