"""The example of a loop of one's own: it runs as it is started, and its ways are what they say."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def own_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("own_loop")
    short = {name: text[:3000] for name, text in module.texts().items()}
    monkeypatch.setattr(module, "texts", lambda: short)
    return module


def test_as_it_is_started(tmp_path):
    words = ["--ways", "plain", "mer", "--seeds", "0", "1", "--steps", "2", "--picture", str(tmp_path / "it.png")]
    command = [sys.executable, ROOT / "examples" / "own_loop.py", *words]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    rows = re.findall(r"^(plain|mer) +((?: *\d\.\d{3} ± \d\.\d{3}){4})$", found.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["plain", "mer"]
    assert re.findall(r"^(plain|mer)((?: +[+-]\d\.\d{3}){3}) *$", found.stdout, re.MULTILINE)
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG") and f"picture: {tmp_path}" in found.stdout


@pytest.mark.parametrize("name", ["plain", "replay", "mer", "algorithm_6"])
def test_each_way_learns_and_its_seed_decides(name, own_loop):
    steps, losses = own_loop.learn(name, 1, 20, every=20)
    assert steps == [0, 20, 40, 60] and torch.tensor(losses).shape == (4, 3)
    assert losses[1][0] < losses[0][0] and losses[2][1] < losses[1][1], "what is being learned is learned"
    if name == "plain":
        one, again, other = (own_loop.learn(name, seed, 3, every=3) for seed in (1, 1, 2))
        assert one == again != other


def test_replay_is_mer_without_reptile(own_loop):
    """And mer's weights are those of a loop that interpolates by hand."""

    def weights(way, n, **more):
        torch.manual_seed(3)
        model, generator = own_loop.Transformer(width=8, n_blocks=1, n_heads=2), torch.Generator().manual_seed(1)
        train, _ = own_loop.halves(own_loop.texts()["sums"])
        stream = (own_loop.sequences(train, own_loop.BATCH, generator) for _ in range(n))
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        for _ in way(model, stream, 5, **more):
            pass
        return before, torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    theta0, theta = weights(own_loop.replay, 6, lr=0.01)
    assert not torch.equal(theta0, theta)
    _, found = weights(own_loop.mer, 6, lr=0.01, every=6, epsilon=0.25)
    assert torch.equal(found, theta0 + (theta - theta0) * 0.25)
    _, found = weights(own_loop.mer, 6, lr=0.01, every=7, epsilon=0.25)
    assert torch.equal(found, theta)


def test_mer_is_a_few_lines_of_a_users_code(own_loop):
    for way in (own_loop.mer, own_loop.algorithm_6):
        assert len(inspect.getsource(way).splitlines()) <= 15


def test_the_transformer_is_causal(own_loop):
    """What comes later changes no earlier output."""
    torch.manual_seed(0)
    model = own_loop.Transformer()
    x = torch.randint(128, (2, own_loop.CONTEXT))
    other = x.clone()
    other[:, 20:] = 0
    with torch.no_grad():
        one, two = model(x), model(other)
    torch.testing.assert_close(one[:, :20], two[:, :20])
    assert not torch.allclose(one[:, 20:], two[:, 20:])
