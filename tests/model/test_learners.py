"""Each learner against its literal loop (literal.py), and every learner there is against what all of them promise."""

import json
import random
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import torch
from conftest import GOLDEN, toy_examples

import model
from model import engine
from model.flags import SHAPE
from model.learner import Learner

SIZES = D, C, T = 12, 3, 3

# every flag that a literal loop reads, by learner; of these each case changes some
NET = {"lr": 0.1, "n_hiddens": 7, "n_layers": 2}
REPLAY = {**NET, "memories": 8, "replay_batch_size": 3}
FLAGS = {
    "online": NET,
    "independent": {**NET, "finetune": True},
    "taskinput": NET,
    "ewc": {**NET, "n_memories": 6, "memory_strength": 20.0},
    "gem": {**NET, "n_memories": 4, "memory_strength": 0.3},
    "eralg4": REPLAY,
    "eralg5": REPLAY,
    "meralg1": {**REPLAY, "beta": 0.4, "gamma": 0.7, "batches_per_example": 1},
    "meralg6": {**REPLAY, "gamma": 0.6, "batches_per_example": 1},
    "meralg7": {**REPLAY, "gamma": 0.6, "s": 3.0},
    "mer_minibatch": {**REPLAY, "gamma": 0.6, "reptile_every": 3},
    "agem": {**REPLAY, "task_memories": 4, "past_only": True},
    "der": {**REPLAY, "alpha": 0.7},
    "derpp": {**REPLAY, "alpha": 0.7, "beta": 0.4},
    "er_ace": {**REPLAY, "task_free": False},
    "mir": {**REPLAY, "subsample": 5, "disc_iters": 1, "compare_to_old_logits": "no"},
    "lamaml": {
        **REPLAY,
        **{"glances": 2, "alpha_init": 0.2, "learn_lr": True, "opt_lr": 0.3, "sync_update": False, "opt_wt": 0.1},
        **{"grad_clip_norm": 2.0, "use_old_task_memory": False},
    },
    "clser": {
        **{**REPLAY, "reg_weight": 0.5, "plastic_model_update_freq": 0.8, "plastic_model_alpha": 0.9},
        **{"stable_model_update_freq": 0.6, "stable_model_alpha": 0.95},
    },
    "gss": {**REPLAY, "n_iter": 2, "candidates": 2, "n_compared": 2, "change_th": 0.9},
    "joint": NET,
}
# `batch_size` and `order` (of the tasks) are the stream's; `same`: all examples alike but for their labels
ALL = [{}, {"batch_size": 4}, {"n_layers": 0}, {"n_layers": 1}, {"n_layers": 3}, {"order": (2, 0, 1), "batch_size": 3}]
SOME_REPLAY = [{"replay_batch_size": 40, "memories": 9}, {"replay_batch_size": 0}, {"memories": 1}, {"memories": 100}]
SOME = {
    "independent": [{"finetune": False}, {"finetune": False, "batch_size": 4}],
    "ewc": [
        {"n_memories": 0, "batch_size": 4},
        {"n_memories": 2, "batch_size": 4},
        {"n_memories": 7, "batch_size": 3},
        {"n_memories": 50},
        {"memory_strength": 0.0},
    ],
    "gem": [
        {"n_memories": 1},
        {"n_memories": 7, "batch_size": 4},  # cut at the ring's end, the pointer in the middle of it at a new task
        {"n_memories": 4, "batch_size": 6},
        {"n_memories": 50},  # slots never written
        {"memory_strength": 0.0},
        {"memory_strength": 0.0, "same": True, "lr": 0.01},  # dependent gradients
    ],
    **dict.fromkeys(("eralg4", "eralg5", "meralg7"), SOME_REPLAY),
    "meralg1": [*SOME_REPLAY, {"batches_per_example": 3}, {"beta": 1.0, "gamma": 1.0}, {"gamma": 0.0}],
    "meralg6": [*SOME_REPLAY, {"batches_per_example": 3, "batch_size": 4}],
    "agem": [
        *SOME_REPLAY,
        {"past_only": False},
        {"past_only": False, "batch_size": 4, "memories": 3},
        {"task_memories": 50, "batch_size": 4},
        {"task_memories": 3, "memories": 4, "order": (2, 0, 1)},
    ],
    **dict.fromkeys(("der", "derpp"), [*SOME_REPLAY, {"alpha": 0.0}, {"memories": 3, "batch_size": 4}]),
    "er_ace": [*SOME_REPLAY, {"task_free": True}, {"task_free": True, "batch_size": 2}, {"batch_size": 2}],
    "mir": [
        *SOME_REPLAY,
        {"subsample": 1},
        {"subsample": 50, "batch_size": 4},
        {"disc_iters": 3, "memories": 4},
        {"compare_to_old_logits": "yes", "memories": 4, "disc_iters": 2},
        {"compare_to_old_logits": "by_place", "batch_size": 4},
    ],
    "lamaml": [
        *SOME_REPLAY,
        {"learn_lr": False, "sync_update": True, "batch_size": 4},
        {"sync_update": True, "batch_size": 4},
        {"use_old_task_memory": True, "batch_size": 4},
        {"use_old_task_memory": True, "memories": 3, "glances": 1, "order": (2, 0, 1)},
        {"opt_lr": 8.0, "alpha_init": 0.02, "grad_clip_norm": 0.4, "batch_size": 4},  # rates that become negative
        {"alpha_init": -0.1, "sync_update": True},
    ],
    "clser": [
        *SOME_REPLAY,
        {"plastic_model_update_freq": 1.0, "stable_model_update_freq": 1.0},  # ties
        {"stable_model_update_freq": 0.0, "reg_weight": 0.0},
        {"memories": 3, "batch_size": 4},
    ],
    "gss": [
        *SOME_REPLAY,
        {"change_th": 2.0, "memories": 4},
        {"change_th": 2.0, "memories": 5, "candidates": 3, "batch_size": 4},
        {"change_th": 2.0, "memories": 1, "candidates": 3, "n_iter": 1, "n_compared": 1},
        {"change_th": 2.0, "memories": 9, "candidates": 4, "batch_size": 2},
        {"change_th": -1.0, "candidates": 50},
    ],
    "mer_minibatch": [*SOME_REPLAY, {"reptile_every": 1}, {"reptile_every": 4, "batch_size": 4}, {"gamma": 0.0}],
}
CASES = [(name, change) for name in FLAGS for change in ALL + SOME.get(name, [])]


STREAM = ("order", "batch_size", "same")


def stream_of(order=(0, 1, 2), batch_size=1, same=False, per_task=10, generator_seed=3):
    """30 examples of 3 tasks, as minibatches (t, x, y); each task has the inputs in another order."""
    generator = np.random.default_rng(generator_seed)
    batches = []
    for t in order:
        x, y = toy_examples(per_task, D, C, generator)
        x = x[:, torch.from_numpy(np.random.default_rng(t).permutation(D))]
        if same:
            x, y = x[:1].repeat(per_task, 1) * 0 + torch.linspace(0, 1, D), torch.full((per_task,), t % C)
        else:
            x, y = x[generator.permutation(per_task)], y[generator.permutation(per_task)]
        batches += [(t, x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, per_task, batch_size)]
    return batches


def learn(learner, stream):
    for t, x, y in stream:
        learner.observe(x, t, y)
    return learner


def text(case):
    name, change = case
    return "-".join([name, *(f"{key}={value}".replace(" ", "") for key, value in change.items())])


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("case", CASES, ids=text)
def test_learner_is_its_literal_loop(case, kind, make_learner):
    name, change = case
    about_stream = {key: value for key, value in change.items() if key in STREAM}
    flags = {**FLAGS[name], **{key: value for key, value in change.items() if key not in about_stream}}
    stream = stream_of(**about_stream)

    words = {**flags, "engine": kind, "draws": "shuffle", "batch_size": about_stream.get("batch_size", 1)}
    found = learn(make_learner(name, words, SIZES, seed=1), stream).state_dict()

    torch.manual_seed(1)
    random.seed(1)
    wanted = literal.LEARNERS[name](stream, SIZES, SimpleNamespace(**flags))

    assert list(found) == list(wanted)
    assert len(stream) > 0 and sum(len(y) for _, _, y in stream) == 30
    for key in wanted:
        if kind == "reference":
            assert torch.equal(found[key], wanted[key]), f"{key}: {(found[key] - wanted[key]).abs().max()}"
        else:
            torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("case", [(name, {}) for name in FLAGS] + [(n, c) for n in SOME for c in SOME[n]], ids=text)
def test_goes_on_from_a_state_that_stayed_in_memory(case, kind, make_learner):
    """Whatever its flags: back to where it was, and a new learner to there, while the first has long learned on."""
    name, change = case
    flags = {key: value for key, value in {**FLAGS[name], **change}.items() if key not in STREAM}
    stream = stream_of(order=change.get("order", (0, 1, 2)), batch_size=3)
    learner, other = (make_learner(name, {**flags, "engine": kind, "batch_size": 3}, SIZES, seed=i) for i in (1, 2))
    learn(learner, stream[:6])
    state = learner.state()
    wanted = weights_of(learn(learner, stream[6:]))
    for again in (learner, other):
        again.load_state(state)
        assert same(weights_of(learn(again, stream[6:])), wanted)


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("case", [(n, c) for n in SOME for c in SOME[n]], ids=text)
def test_a_state_suits_other_flags_unless_they_say_not(case, kind, make_learner):
    """--start_from gives a learner another's state: all that it holds is still there, and it learns on."""
    name, change = case
    shape = {flag.name for flag in model.load(name).flags if flag.role == SHAPE} | {*STREAM}
    stream, common = stream_of(batch_size=3), {"engine": kind, "batch_size": 3}
    first = learn(make_learner(name, {**FLAGS[name], **common}, SIZES), stream[:6])
    other = {key: value for key, value in change.items() if key not in shape}
    second = make_learner(name, {**FLAGS[name], **other, **common}, SIZES, seed=2)
    second.load_state(first.state())
    assert same(weights_of(second), weights_of(first))
    assert second.examples.state()["slots"] == first.examples.state()["slots"]
    learn(second, stream[6:])


def test_every_learner_of_the_paper_has_a_literal_loop():
    assert set(FLAGS) == set(literal.LEARNERS) <= set(model.load_all())


@pytest.mark.parametrize("name", FLAGS)
def test_the_engines_agree_on_mnist(name, make_learner):
    """The paper's net, 100 images of five tasks, the original's draws: weights and training loss."""
    with np.load(GOLDEN / "golden_permutations.npz") as data:
        x, y = torch.from_numpy(data["x_train"][:, :20]).float() / 255, torch.from_numpy(data["y_train"][:20]).long()
    sizes = (x.shape[2], 10, len(x))
    flags = {**FLAGS[name], "n_hiddens": 100, "lr": 0.03, "draws": "shuffle"}
    learners = [make_learner(name, {**flags, "engine": kind}, sizes) for kind in engine.ENGINES]
    for learner in learners:
        for t in range(len(x)):
            for i in range(20):
                learner.observe(x[t, i : i + 1], t, y[i : i + 1])
    ours, reference = learners
    torch.testing.assert_close(ours.state_dict(), reference.state_dict(), rtol=0, atol=1e-3)
    assert ours.engine.take_loss() == pytest.approx(reference.engine.take_loss(), rel=1e-3)


# gem's quadratic program


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 5, 19])
def test_gem_solves_its_quadratic_program(n, margin, make_learner):
    """Karush, Kuhn and Tucker: v >= margin, the gradient P v + q >= 0, and 0 wherever v > margin."""
    generator = np.random.default_rng(n)
    G = generator.standard_normal((n, 40))
    P, q = G @ G.T, G @ generator.standard_normal(40)
    gem = make_learner("gem", {"n_memories": 1, "memory_strength": margin})
    v = gem.solve_qp(P, q)
    slope = P @ v + q
    assert (v >= margin - 1e-9).all() and (slope >= -1e-9).all()
    assert np.abs((v - margin) * slope).max() < 1e-8
    assert gem.qp_repairs == 0


@pytest.mark.parametrize(
    "P", [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]], ids=["equal", "no", "one no"]
)
def test_gem_repairs_a_singular_quadratic_program_and_counts_it(P, make_learner):
    gem = make_learner("gem", {"n_memories": 1, "memory_strength": 0.0})
    P = np.array(P)
    v = gem.solve_qp(P, np.array([-1.0, -1.0]) * P.diagonal())
    assert gem.notes() == {"qp_repairs": 1} and np.isfinite(v).all()
    slope = P @ v - P.diagonal()
    assert (v >= -1e-9).all() and (slope >= -1e-6 * P.max()).all() and np.abs(v * slope).max() < 1e-6


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_gem_goes_on_where_memories_are_the_same(kind, make_learner):
    """Three tasks whose memories are one example, and a fourth that contradicts it: rank 1, several repairs."""
    x = torch.linspace(0, 1, D)[None]
    flags = {"n_memories": 2, "memory_strength": 0.1, "lr": 0.5, "n_layers": 0, "engine": kind, "draws": "shuffle"}
    gem = make_learner("gem", flags, (D, C, 5))
    for t, label in enumerate([0, 0, 0, 1, 0]):
        for _ in range(6):
            gem.observe(x, t, torch.tensor([label]))
    assert gem.notes()["qp_repairs"] > 0
    assert all(torch.isfinite(value).all() for value in gem.state_dict().values())


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_gem_shows_that_the_loss_of_a_memory_is_not_finite(kind, make_learner):
    gem = make_learner("gem", {"n_memories": 2, "memory_strength": 0.1, "engine": kind})
    label = torch.tensor([0])
    gem.memory.remember(gem.examples.put(0, torch.full((1, D), 3e38), 0, label), 0)
    gem.observe(torch.ones(1, D), 1, label)
    assert not np.isfinite(gem.engine.take_loss())


# what every learner promises, whatever it does: one that is dropped into model/ is tested by being there


def combinations():
    """(learner, engine, draws) of everything that can be run."""
    found = []
    args = SimpleNamespace(cuda=False, image_shape=None, class_ranges=None)
    for name, learner in model.load_all().items():
        native = engine.why_not_native(args, learner) is None
        found += [(name, "reference", "shuffle"), (name, "reference", "uniform")]
        found += [(name, "native", draws) for draws in engine.DRAWS if native]
    return found


TOY = {
    "lr": 0.1,
    "n_hiddens": 30,
    "n_memories": 5,
    "memory_strength": 0.1,
    "memories": 20,
    "replay_batch_size": 4,
}


@pytest.fixture(params=combinations(), ids="-".join)
def make(request, make_learner):
    """make(seed, **flags): one kind of learner on one engine, with settings that suit a toy problem."""
    name, kind, draws = request.param

    def made(seed=1, **flags):
        declared = {flag.name for flag in getattr(model.load(name), "flags", ())}
        wanted = {flag: value for flag, value in {**TOY, **flags}.items() if flag in declared}
        return make_learner(name, {**wanted, "engine": kind, "draws": draws, "seed": seed, "batch_size": 4}, seed=seed)

    return made


def weights_of(learner):
    return {name: value.detach().clone() for name, value in learner.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_observes_and_predicts(make):
    learner = make()
    before = weights_of(learner)
    stream = stream_of(batch_size=4)
    learn(learner, stream)
    for t, x, _ in stream[:1] + stream[-1:]:
        outputs = learner(x, t)
        assert outputs.shape == (len(x), C) and outputs.dtype == torch.float32
        assert torch.isfinite(outputs).all()
        assert torch.equal(learner.forward(x, t), outputs)
    after = weights_of(learner)
    assert after.keys() == before.keys() and not same(before, after)
    assert all(torch.isfinite(value).all() for value in after.values())


def test_the_seed_decides(make):
    stream = stream_of(batch_size=4)
    once, again, other = (weights_of(learn(make(seed), stream)) for seed in (1, 1, 2))
    assert same(once, again) and not same(once, other)


def test_learns_what_is_easy(make):
    """The class is which third of the inputs is lit; chance is 1/3."""
    learner = make()
    x, y = toy_examples(240, D, C, np.random.default_rng(1))
    for i in range(0, 240, 4):
        learner.observe(x[i : i + 4], 0, y[i : i + 4])
    x, y = toy_examples(60, D, C, np.random.default_rng(2))
    assert (learner(x, 0).argmax(1) == y).float().mean() > 0.7


def test_goes_on_from_its_state(make, tmp_path):
    """Through a file and into a learner of another seed: bit for bit as if nothing had happened."""
    learner = make()
    if not isinstance(learner, Learner):
        return  # a torch module of its own
    stream = stream_of(batch_size=4)
    for stop in (0, 5, 7):  # at the beginning, and with a task half learned
        learner = learn(make(), stream[:stop])
        torch.save(learner.state(), tmp_path / "state.pt")
        learn(learner, stream[stop:])
        other = learn(make(seed=2), stream[:2])
        other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        learn(other, stream[stop:])
        assert same(weights_of(other), weights_of(learner))
        assert other.notes() == learner.notes()
        for t in range(T):
            assert torch.equal(other(stream[0][1], t), learner(stream[0][1], t))


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_mer_minibatch_goes_on_within_a_block(kind, make_learner, tmp_path):
    """Minibatches 6 to 8 are a block: a state from after each of its steps is loaded into a learner in mid-block."""
    flags = {**FLAGS["mer_minibatch"], "engine": kind, "batch_size": 2}
    stream = stream_of(batch_size=2)
    for stop in (6, 7, 8):
        learner = learn(make_learner("mer_minibatch", flags), stream[:stop])
        torch.save(learner.state(), tmp_path / "state.pt")
        other = learn(make_learner("mer_minibatch", flags, seed=2), stream[:4])
        other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        for batch in stream[stop:]:
            assert same(weights_of(learn(other, [batch])), weights_of(learn(learner, [batch])))


def test_goes_on_from_its_weights(make):
    learner = learn(make(), stream_of(batch_size=4))
    other = make(seed=2)
    other.load_state_dict(weights_of(learner))
    assert same(weights_of(other), weights_of(learner))


def test_notes_can_be_written_down(make):
    learner = learn(make(), stream_of(batch_size=4))
    notes = learner.notes() if hasattr(learner, "notes") else {}
    assert json.loads(json.dumps(notes)) == notes


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("name", FLAGS)
def test_weights_have_the_original_names(name, kind, make_learner):
    layers = {
        "independent": [f"nets.{t}.net.{i}" for t in range(T) for i in (0, 2, 4)],
        "clser": [f"{net}.net.{i}" for net in ("net", "plastic", "stable") for i in (0, 2, 4)],
        "taskinput": ["i_layer.0", "i_layer.1", "i_layer.2", "h_layer.0.0", "o_layer.0"],
    }.get(name, ["net.net.0", "net.net.2", "net.net.4"])
    learner = make_learner(name, {"n_memories": 1, "engine": kind})
    assert list(learner.state_dict()) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def test_the_compiled_kernels_are_there():
    """All of the above runs on them too; without them half of it would not be tested."""
    from model.engine import native  # noqa: F401
