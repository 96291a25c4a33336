"""benchmarks/equivalence.py: its test of equivalence, and that it runs."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT

import model


@pytest.fixture(scope="module")
def equivalence():
    spec = importlib.util.spec_from_file_location("equivalence", ROOT / "benchmarks" / "equivalence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equivalence_is_shown_by_small_differences_only(equivalence):
    spread = np.array([-1, 1, -0.5, 0.5, 0, 0.2, -0.2, 0.9, -0.9, 0]) / 1000
    assert equivalence.equivalence(spread)[0] < 1e-6
    assert equivalence.equivalence(spread + 0.0098)[0] > 0.05, "near the margin"
    assert equivalence.equivalence(spread + 0.02)[0] > 0.999
    assert equivalence.equivalence(spread * 30)[0] > 0.05, "too noisy to say"
    p, low, high = equivalence.equivalence(spread + 0.004)
    assert p < 0.05 and -0.01 < low < 0.004 < high < 0.01
    assert equivalence.equivalence(np.zeros(10)) == (0, 0, 0) and equivalence.equivalence(np.full(10, 0.01))[0] == 1


def test_its_level_is_its_level(equivalence):
    """At a true difference of the margin, it is called equivalent in 5 % of the cases."""
    generator = np.random.default_rng(0)
    wrong = [equivalence.equivalence(generator.normal(0.01, 0.004, 10))[0] < 0.05 for _ in range(2000)]
    assert abs(np.mean(wrong) - 0.05) < 0.02


def test_every_learner_of_the_paper_is_compared(equivalence):
    paper = "online independent taskinput ewc gem eralg4 eralg5 meralg1 meralg6 meralg7".split()
    assert sorted(equivalence.MIDDLE_RUNS) == sorted(paper) and set(paper) <= set(model.candidates())


def test_a_run(equivalence):
    flags = f"--model eralg4 {equivalence.MIDDLE_RUNS['eralg4']} {equivalence.MIDDLE} --samples_per_task 2 --seed 3"
    found = equivalence.run((flags, 2))
    assert set(found) == {"RA", "LA", "BTI", "FWT"} and 0 < found["RA"] < 1
