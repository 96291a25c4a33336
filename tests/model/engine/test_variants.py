"""The same bits on every machine: whole runs under every variant of the kernels that runs here, by MER_KERNELS."""

import itertools
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from runs import become, in_child, learners, place, words_of

import main
from model.engine import _build, _compiled

ROOT = Path(main.__file__).parent
VARIANTS = list(_compiled.runnable())
WAY = ("native", "shuffle")
TASKS = {"n_train": 30, "n_test": 40, "n_inputs": 150}
# groups of examples, layers of several registers, and a memory of gem that its factored and its plain gradients share
SIZES = ("--n_hiddens", 99, "--replay_batch_size", 9, "--memories", 20, "--log_every", 9)
pytestmark = pytest.mark.timeout(900)  # every learner, several times over
PARTS = 40  # minibatches of 90 before a run is stopped


def work(variant, todo):
    """Runs main.py in folders, [(folder, words, None or minibatches to stop after)], with this variant's kernels.

    In a process of its own; what it said.
    """
    done = in_child(lambda: _work(variant, todo), seconds=800)
    assert done.code == 0, done.text[-2000:]
    return done.text


def _work(variant, todo):
    os.environ["MER_KERNELS"] = variant
    become(ROOT)
    for name in ("runs", "conftest"):
        del sys.modules[name]
    import runs

    from model.engine import _compiled

    assert _compiled.variant == variant
    runs.provenance.commit = lambda: {"commit": None, "dirty": None}  # asks git, slowly
    for folder, words, stop in todo:
        os.chdir(folder)
        if stop:
            with runs.after(stop, runs.a_signal(15)):
                assert runs.main.main(words) == 143
        else:
            assert runs.main.main(words) == 0
    return 0


def left_in(folder):
    """(weights by name, result_a) of the only finished run in folder/results."""
    (path,) = (folder / "results").glob("*.pt")
    result_t, result_a, weights, *_ = torch.load(path, weights_only=False)
    return weights, result_a


def assert_same(found, wanted):
    assert found[0].keys() == wanted[0].keys() and len(found[0]) >= 4
    for name in wanted[0]:
        assert torch.equal(found[0][name].view(torch.int32), wanted[0][name].view(torch.int32)), name
    assert torch.equal(found[1], wanted[1]) and len(found[1]) > 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{(variant, learner): folder of its run}; a run under each variant that was begun under the one before it."""
    top = tmp_path_factory.mktemp("variants")
    whole = {key: place(top / "-".join(("whole", *key)), **TASKS) for key in itertools.product(VARIANTS, learners())}
    mixed = {key: place(top / "-".join(("mixed", *key)), **TASKS) for key in itertools.product(VARIANTS, learners())}
    for before, variant in zip(VARIANTS[-1:] + VARIANTS, VARIANTS, strict=False):
        parts = [(str(mixed[variant, name]), words_of(name, WAY, *SIZES), PARTS) for name in learners()]
        said = work(before, parts)
        paths = re.findall(r"^go on with: python main.py --resume (\S+)$", said, re.MULTILINE)
        rest = [(part[0], ["--resume", path], None) for part, path in zip(parts, paths, strict=True)]
        work(variant, rest + [(str(whole[variant, name]), words_of(name, WAY, *SIZES), None) for name in learners()])
    return whole, mixed


@pytest.mark.skipif(len(VARIANTS) < 2, reason="one variant runs here")
@pytest.mark.parametrize("name", learners())
def test_every_variant_computes_the_same_bits(name, runs):
    whole, mixed = runs
    wanted = left_in(whole[VARIANTS[0], name])
    for variant in VARIANTS:
        assert_same(left_in(whole[variant, name]), wanted)
        assert_same(left_in(mixed[variant, name]), wanted)


def test_no_compiler_may_change_a_number():
    flags = {*_build.FLAGS, *(flag for flags in _build.VARIANTS.values() for flag in flags)}
    assert "-ffp-contract=off" in flags
    assert not any(re.search("fast|associative|unsafe|finite-math|fma|native|reciprocal", flag) for flag in flags)
