"""A learner alone in its user's loop: the learner of main.py's run, and every slip of the loop is told."""

import io

import numpy as np
import pytest
import torch
from runs import FLAGS, WAYS, learners

import model
from errors import UserError
from run.experience import random_state

SIZES = (12, 3, 3)
SMALL = {"n_hiddens": 9, "lr": 0.1, "memories": 7, "replay_batch_size": 3, "threads": 1}


def flags_of(name):
    words = FLAGS.get(name, ())
    return SMALL | {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def stream(n_each=8, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for t in range(SIZES[2]):
        for _ in range(n_each):
            x = torch.rand(batch, SIZES[0], generator=generator)
            yield x, t, torch.randint(SIZES[1], (batch,), generator=generator)


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", learners())
def test_is_the_learner_of_a_run(name, way, make_learner):
    """To the bit, from NumPy's float64 as well; the random streams of the process are not touched."""
    flags = flags_of(name) | dict(zip(("engine", "draws"), way, strict=True))
    wanted = make_learner(name, flags | {"seed": 5}, SIZES, seed=5)
    torch.set_default_dtype(torch.float64)
    try:
        before = str(random_state())
        learner = model.create(name, *SIZES, seed=5, **flags)
        assert str(random_state()) == before
    finally:
        torch.set_default_dtype(torch.float32)
    for x, t, y in stream():
        wanted.observe(x, t, y)
        learner.observe(x.double().numpy(), np.int64(t), y.int().numpy())
    assert_same(learner, wanted)
    x = next(stream(batch=4, seed=1))[0]
    for t in range(SIZES[2]):
        outputs = learner(x, t)
        assert torch.equal(outputs, wanted.forward(x, t)) and outputs.shape == (4, 3) and not outputs.requires_grad
    assert learner.is_finite() and learner.learner.n_tasks == 3


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", learners())
def test_goes_on_from_its_state(name, way):
    """Through a file, read without executing anything, into a learner of another seed."""
    flags = flags_of(name) | dict(zip(("engine", "draws"), way, strict=True)) | {"batch_size": 2}
    examples = list(stream(batch=2))
    wanted = model.create(name, *SIZES, seed=1, **flags)
    for example in examples[:13]:
        wanted.observe(*example)
    file = io.BytesIO()
    torch.save(wanted.state(), file)
    file.seek(0)
    learner = model.create(name, *SIZES, seed=2, **flags)
    learner.observe(*examples[0])
    learner.load_state(torch.load(file, weights_only=True))
    for example in examples[13:]:
        wanted.observe(*example)
        learner.observe(*example)
    assert_same(learner, wanted)


def test_images_and_classes_per_task():
    """The reference engine's networks for them, with images as they are; remarks are said."""
    learner = model.create(
        "eralg4", 3072, 4, 2, image_shape=(3, 32, 32), class_ranges=[(0, 2), (2, 4)], memories=5, replay_batch_size=2
    )
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    learner.observe(x, 1, torch.tensor([3]))
    outputs = learner.forward(x, 0)
    assert outputs.shape == (1, 4) and (outputs[:, 2:] < -1e9).all() and (outputs[:, :2] > -1e9).all()
    with pytest.raises(UserError, match="labels 1 to 1; those of task 1 are 2 to 3"):
        learner.observe(x, 1, torch.tensor([1]))


@pytest.mark.parametrize(
    "sizes,flags,message",
    [
        (SIZES, {"memoris": 3}, r"--memoris=3 \(did you mean --memories\?\)"),
        (SIZES, {"lr": -1}, "--lr: -1.0 is too small"),
        (SIZES, {"model": "gem", "n_memories": 0}, "--n_memories 0: gem keeps"),
        (SIZES, {"model": "meralgo"}, "unknown model 'meralgo' .did you mean meralg"),
        (SIZES, {"data_file": "mnist_rotations.pt"}, "data_file='mnist_rotations.pt' belongs to a run"),
        (SIZES, {"save_path": "x"}, "save_path='x' belongs to a run"),
        ((0, 3, 3), {}, "n_inputs=0: it must be a whole number, 1 or more"),
        ((12, 2.5, 3), {}, "n_outputs=2.5: it must be"),
        ((12, 3, "3"), {}, "n_tasks='3': it must be"),
        (SIZES, {"image_shape": (1, 2, 3)}, r"image_shape=\(1, 2, 3\) has not the 12 inputs"),
        (SIZES, {"image_shape": 12}, "the image shape is .channels, height, width."),
        (SIZES, {"image_shape": (3, 4)}, "the image shape is .channels, height, width."),
        (SIZES, {"image_shape": (-3, -4, 1)}, "the image shape is .channels, height, width."),
        (SIZES, {"image_shape": (1.0, 3, 4)}, "the image shape is .channels, height, width."),
        (SIZES, {"class_ranges": [(0, 1)]}, "1 class ranges for 3 tasks"),
        (SIZES, {"class_ranges": [1, 2, 3]}, "class ranges are pairs of whole numbers"),
        (SIZES, {"class_ranges": [(0, 0.5), (1, 2), (2, 3)]}, "class ranges are pairs of whole numbers"),
        (SIZES, {"class_ranges": [(0, 1), (1, 2), (2, 9)]}, r"class_ranges=.*within 0\.\.3"),
    ],
)
def test_bad_flags(sizes, flags, message):
    with pytest.raises(UserError, match=message):
        model.create(flags.pop("model", "eralg4"), *sizes, **flags)


X, Y = torch.rand(2, 12), torch.tensor([0, 2])


@pytest.mark.parametrize("way", WAYS[1:3], ids="-".join)
@pytest.mark.parametrize(
    "x,t,y,message",
    [
        (X[:, :5], 0, Y, r"x: float32 \(2, 5\); give floats of \(B, 12\)"),
        (X[0], 0, Y[:1], r"x: float32 \(12,\)"),
        (torch.zeros(2, 12, dtype=torch.uint8), 0, Y, r"x: uint8 \(2, 12\); .*divided by 255"),
        (X * float("nan"), 0, Y, "x has numbers that are not finite"),
        (X, 3, Y, "task 3; give a number from 0 to 2"),
        (X, -1, Y, "task -1;"),
        (X, 0.0, Y, r"task 0\.0;"),
        (X, 0, Y[:1], r"y: int64 \(1,\); give 2 whole numbers"),
        (X, 0, torch.eye(3)[Y], r"y: float32 \(2, 3\); give 2 whole numbers"),
        (X, 0, Y + 1, "labels 1 to 3; those of task 0 are 0 to 2"),
        (X, 0, Y - 1, "labels -1 to 1;"),
        (torch.cat([X, X]), 0, torch.cat([Y, Y]), "4 examples at once; give 1 to 2, or create it with batch_size=4"),
        (None, 0, Y, "x is None; an array of numbers is needed"),
        ("text", 0, Y, "x is a str; an array of numbers is needed"),
        ([[1.0], [1.0, 2.0]], 0, Y, "x is a list of 2 that is no array"),
        (X.to_sparse(), 0, Y, "x is a sparse, quantized or meta tensor"),
        (X.numpy().astype(object), 0, Y, r"x: object \(2, 12\); give an array of numbers"),
        (X, 0, ["a", "b"], r"y: <U1 \(2,\); give an array of numbers"),
        (X, 0, None, "y is None; an array of numbers is needed"),
        (X[:0], 0, Y[:0], "0 examples at once; give 1 to 2, or create it with batch_size=1"),
    ],
)
def test_bad_examples_are_refused_and_nothing_is_learned(x, t, y, message, way):
    learner = model.create("eralg4", *SIZES, engine=way[0], draws=way[1], batch_size=2, **SMALL)
    learner.observe(X, 0, Y)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    n = learner.learner.memory.size
    with pytest.raises(UserError, match=message):
        learner.observe(x, t, y)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert learner.learner.memory.size == n


@pytest.mark.parametrize("way", WAYS[1:3], ids="-".join)
@pytest.mark.parametrize("form", ["list", "reversed", "big_endian", "longdouble", "read_only", "bfloat16", "inference"])
def test_examples_of_every_form(form, way):
    """What holds the same numbers teaches the same, and stays the caller's; wherever autograd is switched off, too."""
    x = (X * 64).round() / 64  # exact in all of them
    y, flags = Y.numpy(), {"engine": way[0], "draws": way[1], "batch_size": 2, **SMALL}
    reversed_x = np.ascontiguousarray(x.numpy()[:, ::-1])[:, ::-1]
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    forms = {
        "list": (x.tolist(), y.tolist()),
        "reversed": (reversed_x, np.ascontiguousarray(y[::-1])[::-1]),
        "big_endian": (x.numpy().astype(">f8"), y.astype(">i4")),
        "longdouble": (x.numpy().astype(np.longdouble), y.astype(np.uint16)),
        "read_only": (read_only, y),
        "bfloat16": (x.bfloat16(), Y),
        "inference": (x, Y),
    }
    wanted, learner = (model.create("meralg6", *SIZES, **flags) for _ in range(2))
    for _ in range(3):
        wanted.observe(x, 0, Y)
        with torch.inference_mode(form == "inference"):
            learner.observe(forms[form][0], 0, forms[form][1])
    assert_same(learner, wanted)


def test_a_state_of_another_learner_is_refused():
    state = model.create("eralg4", *SIZES, **SMALL).state()
    for other in ("gem", "meralg1"):
        learner = model.create(other, *SIZES, **SMALL | {"n_hiddens": 5, "n_memories": 2})
        with pytest.raises(UserError, match="this is no state of such a learner: "):
            learner.load_state(state)
