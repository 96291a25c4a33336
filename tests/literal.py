"""Every learner as one literal loop, written from the description of its algorithm and from nothing of the program.

The oracle of test_learners.py. D inputs, H hidden units, C classes, T tasks. A stream is a list of minibatches
(t, x, y): the task, x (B, D) float32, y (B,) int64. Each function takes (stream, sizes = (D, C, T), h), h the flags
by name, and returns the final weights by the original's names. Weights come from torch's random stream, draws from
Python's `random`, both as they stand at the call.
"""

import math
import random

import numpy as np
import quadprog
import torch
from torch import nn
from torch.nn import functional as F

# networks: a list of (weight, bias)


def default_layer(fan_in, fan_out):
    layer = nn.Linear(fan_in, fan_out)
    return layer.weight, layer.bias


def mlp(sizes):
    """All layers as PyTorch draws them, then each weight again uniform in (-a, a); biases 0."""
    layers = [default_layer(fan_in, fan_out) for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True)]
    with torch.no_grad():
        for weight, bias in layers:
            a = math.sqrt(3.0) * math.sqrt(2.0 / (weight.shape[1] + weight.shape[0]))
            weight.uniform_(-a, a)
            bias.zero_()
    return layers


def outputs(layers, x):
    for i, (weight, bias) in enumerate(layers):
        x = F.linear(x if i == 0 else x.relu(), weight, bias)
    return x


def flat(layers):
    return [p for layer in layers for p in layer]


def named(layers, prefix="net."):
    """net.0.weight, net.0.bias, net.2.weight, ...: every second module is a ReLU."""
    return {
        f"{prefix}net.{2 * i}.{kind}": p.detach()
        for i, layer in enumerate(layers)
        for kind, p in zip(("weight", "bias"), layer, strict=True)
    }


def one_net(sizes, h):
    D, C, _ = sizes
    layers = mlp([D] + [h.n_hiddens] * h.n_layers + [C])
    return layers, torch.optim.SGD(flat(layers), lr=h.lr)


def sgd(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# memories


def draw(memory, k):
    order, drawn = list(range(len(memory))), []
    for j in range(min(k, len(memory))):
        random.shuffle(order)
        drawn.append(memory[order[j]])
    return drawn


class Remember:
    def __init__(self, capacity):
        self.capacity, self.count, self.memory = capacity, 0, []

    def __call__(self, example):
        self.count += 1
        if len(self.memory) < self.capacity:
            self.memory.append(example)
        else:
            p = random.randint(0, self.count)
            if p < self.capacity:
                self.memory[p] = example


def one_at_a_time(stream):
    for t, x, y in stream:
        for i in range(len(y)):
            yield t, x[i : i + 1], y[i : i + 1]


def clones(layers):
    return [p.detach().clone() for p in flat(layers)]


def reptile(layers, before, step):
    with torch.no_grad():
        for p, p0 in zip(flat(layers), before, strict=True):
            p.copy_(p0 + (p - p0) * step)


# baselines


def online(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    for _, x, y in stream:
        sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
    return named(layers)


def independent(stream, sizes, h):
    D, C, T = sizes
    nets = [mlp([D] + [h.n_hiddens // T] * h.n_layers + [C]) for _ in range(T)]
    active = 0  # the original's active net, before any example
    for t, x, y in stream:
        if t != active:
            if t > 0 and h.finetune:
                with torch.no_grad():
                    for new, old in zip(flat(nets[t]), flat(nets[active]), strict=True):
                        new.copy_(old)
            active = t
        sgd(torch.optim.SGD(flat(nets[t]), lr=h.lr), F.cross_entropy(outputs(nets[t], x), y))
    return {name: p for t, net in enumerate(nets) for name, p in named(net, f"nets.{t}.").items()}


def taskinput(stream, sizes, h):
    D, C, T = sizes
    n_shared = h.n_layers - 1
    if n_shared > 0:
        first = [default_layer(D, h.n_hiddens) for _ in range(T)]
        hidden = [default_layer(h.n_hiddens, h.n_hiddens) for _ in range(n_shared)]
        last = [default_layer(h.n_hiddens, C)]
    else:  # one linear layer for each task
        first, hidden, last = [default_layer(D, C) for _ in range(T)], [], []
    with torch.no_grad():
        for _, bias in [*first, *hidden[:1], *last]:
            bias.zero_()
    optimizer = torch.optim.SGD(flat([*first, *hidden, *last]), lr=h.lr)
    for t, x, y in stream:
        sgd(optimizer, F.nll_loss(F.log_softmax(outputs([first[t], *hidden, *last], x), dim=1), y))
    found = {}
    for group, layers in (("i_layer.", first), ("h_layer.0.", hidden), ("o_layer.", last)):
        for i, (weight, bias) in enumerate(layers):
            found |= {f"{group}{i}.weight": weight.detach(), f"{group}{i}.bias": bias.detach()}
    return found


def ewc(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    current, kept_x, kept_y, past = None, None, None, []
    for t, x, y in stream:
        if current is not None and t != current:
            optimizer.zero_grad()
            F.cross_entropy(outputs(layers, kept_x), kept_y).backward()
            past.append([(p.grad.clone().pow(2), p.detach().clone()) for p in flat(layers)])
            kept_x = None
        current = t
        if kept_x is None:
            kept_x, kept_y = x, y
        elif len(kept_y) < h.n_memories:
            kept_x, kept_y = torch.cat([kept_x, x])[: h.n_memories], torch.cat([kept_y, y])[: h.n_memories]
        loss = F.cross_entropy(outputs(layers, x), y)
        for importance in past:
            for p, (fisher, optimum) in zip(flat(layers), importance, strict=True):
                loss = loss + (h.memory_strength * fisher * (p - optimum).pow(2)).sum()
        sgd(optimizer, loss)
    return named(layers)


def gem(stream, sizes, h):
    layers, _ = one_net(sizes, h)
    rings, pointer = {}, 0  # ONE pointer, that goes on across tasks

    def gradient(x, y):
        grads = torch.autograd.grad(F.cross_entropy(outputs(layers, x), y), flat(layers))
        return torch.cat([g.reshape(-1) for g in grads])

    for t, x, y in stream:
        ring = rings.setdefault(t, [None] * h.n_memories)
        for i in range(min(len(y), h.n_memories - pointer)):
            ring[pointer] = (x[i], y[i])
            pointer += 1
        if pointer == h.n_memories:
            pointer = 0
        G = []
        for k in rings:
            if k != t:
                written = [example for example in rings[k] if example is not None]
                G.append(gradient(torch.stack([x for x, _ in written]), torch.stack([y for _, y in written])))
        g = gradient(x, y)
        if any(torch.dot(g, g_k) < 0 for g_k in G):
            G64, g64 = torch.stack(G).double().numpy(), g.double().numpy()
            v = least(G64 @ G64.T, G64 @ g64, h.memory_strength)
            g = torch.from_numpy((v @ G64 + g64).astype(np.float32))
        with torch.no_grad():
            for p, part in zip(flat(layers), g.split([p.numel() for p in flat(layers)]), strict=True):
                p.add_(part.view_as(p), alpha=-h.lr)
    return named(layers)


def least(P, q, margin):
    """argmin 1/2 v P v + q v subject to v >= margin; a growing diagonal where P is singular."""
    P, eye, added = (P + P.T) / 2, np.eye(len(q)), 0.0
    while True:
        try:
            return quadprog.solve_qp(P + added * eye, -q, eye, margin * np.ones(len(q)))[0]
        except ValueError:
            added = 1e-10 * np.trace(P) / len(q) if added == 0 else 10 * added


# replay


def eralg4(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    for example in one_at_a_time(stream):
        batch = draw(remember.memory, h.replay_batch_size) + [example]
        x, y = torch.cat([x for _, x, _ in batch]), torch.cat([y for _, _, y in batch])
        sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
        remember(example)
    return named(layers)


def eralg5(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    for example in one_at_a_time(stream):
        groups = {}
        for t, x, y in [example] + draw(remember.memory, h.replay_batch_size):
            groups.setdefault(t, []).append((x, y))
        loss = 0
        for group in groups.values():
            x, y = torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])
            loss = loss + F.cross_entropy(outputs(layers, x), y)
        sgd(optimizer, loss)
        remember(example)
    return named(layers)


def meralg1(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    for example in one_at_a_time(stream):
        before_example = clones(layers)
        for _ in range(h.batches_per_example):
            before_batch = clones(layers)
            for _, x, y in [example] + draw(remember.memory, h.replay_batch_size):
                sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
            reptile(layers, before_batch, h.beta)
        reptile(layers, before_example, h.gamma)
        remember(example)
    return named(layers)


def meralg6(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    for example in one_at_a_time(stream):
        draw(remember.memory, h.replay_batch_size)  # thrown away
        for _ in range(h.batches_per_example):
            before = clones(layers)
            for _, x, y in draw(remember.memory, h.replay_batch_size) + [example]:
                sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
            reptile(layers, before, h.gamma)
        remember(example)
    return named(layers)


def meralg7(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    for example in one_at_a_time(stream):
        if remember.count > 0:
            before = clones(layers)
            batch = [example] + draw(remember.memory, h.replay_batch_size)
            indices = list(range(len(batch)))
            random.shuffle(indices)
            for i in indices:
                _, x, y = batch[i]
                loss = F.cross_entropy(outputs(layers, x), y)
                sgd(optimizer, h.s * loss if i == 0 else loss)
            reptile(layers, before, h.gamma)
        remember(example)
    return named(layers)


def mer_minibatch(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    remember = Remember(h.memories)
    before = clones(layers)
    for number, (t, x, y) in enumerate(stream, 1):
        batch = [*draw(remember.memory, h.replay_batch_size), (t, x, y)]
        x_all, y_all = torch.cat([x for _, x, _ in batch]), torch.cat([y for _, _, y in batch])
        sgd(optimizer, F.cross_entropy(outputs(layers, x_all), y_all))
        if number % h.reptile_every == 0:
            reptile(layers, before, h.gamma)
            before = clones(layers)
        for example in one_at_a_time([(t, x, y)]):
            remember(example)
    return named(layers)


LEARNERS = {
    f.__name__: f
    for f in (online, independent, taskinput, ewc, gem, eralg4, eralg5, meralg1, meralg6, meralg7, mer_minibatch)
}
