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


def draw_different(memory, k):
    """Without replacement: the first of a shuffled memory."""
    order = list(range(len(memory)))
    random.shuffle(order)
    return [memory[i] for i in order[:k]]


def vitter(memory, capacity, count, example):
    """Algorithm R: the count-th example is kept with probability capacity / count."""
    if len(memory) < capacity:
        memory.append(example)
    else:
        p = random.randint(0, count - 1)
        if p < capacity:
            memory[p] = example


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


# what came after


def joined(batch):
    return torch.cat([x for x, *_ in batch]), torch.cat([y for _, y, *_ in batch])


def singles(x, y):
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(y))]


def agem(stream, sizes, h):
    layers, _ = one_net(sizes, h)
    past, n_past, sample, n_task, current = [], 0, [], 0, None

    def gradient(x, y):
        grads = torch.autograd.grad(F.cross_entropy(outputs(layers, x), y), flat(layers))
        return torch.cat([g.reshape(-1) for g in grads])

    for t, x, y in stream:
        if t != current:  # the sample of the task that is over enters memory, in random order
            if h.past_only:
                random.shuffle(sample)
                for example in sample:
                    n_past += 1
                    vitter(past, h.memories, n_past, example)
            sample, n_task, current = [], 0, t
        drawn = draw_different(past, h.replay_batch_size)
        g = gradient(x, y)
        if drawn:
            g_ref = gradient(*joined(drawn))
            if torch.dot(g, g_ref) < 0:
                g64, ref64 = g.double().numpy(), g_ref.double().numpy()
                g = torch.from_numpy((-(ref64 @ g64) / (ref64 @ ref64) * ref64 + g64).astype(np.float32))
        with torch.no_grad():
            for p, part in zip(flat(layers), g.split([p.numel() for p in flat(layers)]), strict=True):
                p.add_(part.view_as(p), alpha=-h.lr)
        for example in singles(x, y):
            if h.past_only:
                n_task += 1
                vitter(sample, h.task_memories, n_task, example)
            else:
                n_past += 1
                vitter(past, h.memories, n_past, example)
    return named(layers)


def der(stream, sizes, h, beta=None):
    layers, optimizer = one_net(sizes, h)
    memory, count = [], 0
    for _, x, y in stream:
        logits = outputs(layers, x)
        loss = F.cross_entropy(logits, y)
        drawn = draw_different(memory, h.replay_batch_size)
        if drawn:
            z = torch.cat([z for _, _, z in drawn])
            loss = loss + h.alpha * (outputs(layers, joined(drawn)[0]) - z).pow(2).mean()
        if beta is not None:
            drawn = draw_different(memory, h.replay_batch_size)
            if drawn:
                x2, y2 = joined(drawn)
                loss = loss + beta * F.cross_entropy(outputs(layers, x2), y2)
        sgd(optimizer, loss)
        for i, (x_i, y_i) in enumerate(singles(x, y)):
            count += 1
            vitter(memory, h.memories, count, (x_i, y_i, logits[i : i + 1].detach()))
    return named(layers)


def derpp(stream, sizes, h):
    return der(stream, sizes, h, h.beta)


def er_ace(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    memory, count, seen, first = [], 0, set(), None
    for t, x, y in stream:
        first = t if first is None else first
        logits = outputs(layers, x)
        seen |= set(y.tolist())
        if t == first and not h.task_free:
            loss = F.cross_entropy(logits, y)
        else:
            for c in range(logits.shape[1]):
                if c not in y.tolist() and c < max(seen):
                    logits = torch.where(torch.arange(logits.shape[1]) == c, -1e9, logits)
            loss = F.cross_entropy(logits, y)
            drawn = draw_different(memory, h.replay_batch_size)
            if drawn:
                x2, y2 = joined(drawn)
                loss = loss + F.cross_entropy(outputs(layers, x2), y2)
        sgd(optimizer, loss)
        for example in singles(x, y):
            count += 1
            vitter(memory, h.memories, count, example)
    return named(layers)


def mir(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    memory, count, old, best = [], 0, torch.zeros(h.memories, sizes[1]), [math.inf] * h.memories
    for t, x, y in stream:
        for _ in range(h.disc_iters):
            eligible = [place for place, example in enumerate(memory) if example[2] != t]
            positions = draw_different(range(len(eligible)), h.subsample)
            loss = F.cross_entropy(outputs(layers, x), y)
            if positions and h.replay_batch_size:
                places = [eligible[i] for i in positions]
                x2, y2 = joined([memory[place] for place in places])
                with torch.no_grad():
                    logits = outputs(layers, x2)
                    before = F.cross_entropy(logits, y2, reduction="none")
                    if h.compare_to_old_logits == "yes":
                        for i, place in enumerate(places):
                            before[i] = best[place] = min(best[place], float(before[i]))
                    if h.compare_to_old_logits == "by_place":
                        least = F.cross_entropy(old[positions], y2, reduction="none")
                        for i, place in enumerate(positions):
                            if before[i] < least[i]:
                                old[place] = logits[i]
                        before = torch.minimum(before, least)
                theta = clones(layers)
                sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
                with torch.no_grad():
                    score = F.cross_entropy(outputs(layers, x2), y2, reduction="none") - before
                    for p, p0 in zip(flat(layers), theta, strict=True):
                        p.copy_(p0)
                worst = sorted(range(len(places)), key=lambda i: -score[i])[: h.replay_batch_size]
                loss = F.cross_entropy(outputs(layers, x), y) + F.cross_entropy(outputs(layers, x2[worst]), y2[worst])
            sgd(optimizer, loss)
        before = max(count, h.memories)  # the examples seen before those for which there is no room
        for x_i, y_i in singles(x, y):
            count += 1
            place = len(memory)
            if place < h.memories:
                memory.append(None)
            else:
                place = random.randint(0, before - 1)
            if place < h.memories:
                memory[place] = (x_i, y_i, t)
                best[place] = math.inf
    return named(layers)


def lamaml(stream, sizes, h):
    D, C, _ = sizes
    layers = mlp([D] + [h.n_hiddens] * h.n_layers + [C])
    theta = flat(layers)
    alpha = [torch.full_like(p, h.alpha_init) for p in theta]
    remember, current, old = Remember(h.memories), None, None

    def gradient(x, y):
        return torch.autograd.grad(F.cross_entropy(outputs(layers, x), y), theta)

    def clipped(gradients):
        norm = torch.stack([g.norm() for g in gradients]).norm()
        return [(h.grad_clip_norm / (norm + 1e-6)).clamp(max=1) * g for g in gradients]

    for t, x, y in stream:
        if t != current:
            old = None if current is None else list(remember.memory)
            current = t
        for glance in range(h.glances):
            order = list(range(len(y)))
            random.shuffle(order)
            x, y = x[order], y[order]
            x_all, y_all = joined(
                draw(old if h.use_old_task_memory and old is not None else remember.memory, h.replay_batch_size)
                + [(x, y)]
            )
            theta_0 = clones(layers)
            u, v, path = ([torch.zeros_like(p) for p in theta] for _ in range(3))
            for x_i, y_i in singles(x, y):
                inner = gradient(x_i, y_i)
                with torch.no_grad():
                    for p, a, g, s in zip(theta, alpha, inner, path, strict=True):
                        p.copy_(p - torch.clamp(a, min=0) * g)
                        s.copy_(s + g)
                loss = F.cross_entropy(outputs(layers, x_all), y_all) * (1 / len(y))
                for i, g in enumerate(torch.autograd.grad(loss, theta)):
                    u[i] = u[i] + g
                    v[i] = v[i] - torch.where(alpha[i] > 0, g, 0) * path[i]
            for example in singles(x, y) if glance == 0 else []:
                remember(example)
            u, v = clipped(u), clipped(v)
            with torch.no_grad():
                for i, p in enumerate(theta):
                    if h.learn_lr:
                        alpha[i] = alpha[i] - h.opt_lr * v[i]
                    p.copy_(theta_0[i] - (h.opt_wt if h.sync_update else torch.clamp(alpha[i], min=0)) * u[i])
    return named(layers)


def clser(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    averages = {name: [(w.detach().clone(), b.detach().clone()) for w, b in layers] for name in ("plastic", "stable")}
    memory, count = [], 0
    for step, (_, x, y) in enumerate(stream, 1):
        drawn = draw_different(memory, h.replay_batch_size)
        x_all, y_all = joined([(x, y), *drawn])
        loss = F.cross_entropy(outputs(layers, x_all), y_all)
        if drawn:
            x2, y2 = joined(drawn)
            targets = []
            for x_i, y_i in drawn:
                plastic, stable = (outputs(averages[name], x_i) for name in ("plastic", "stable"))
                surer = stable.softmax(1)[0, y_i] > plastic.softmax(1)[0, y_i]
                targets.append(outputs(averages["stable" if surer else "plastic"], x2)[len(targets)])
            loss = loss + h.reg_weight * (outputs(layers, x2) - torch.stack(targets)).pow(2).mean()
        sgd(optimizer, loss)
        for example in singles(x, y):
            count += 1
            vitter(memory, h.memories, count, example)
        for name in ("plastic", "stable"):
            if random.random() < getattr(h, f"{name}_model_update_freq"):
                a = min(1 - 1 / (step + 1), getattr(h, f"{name}_model_alpha"))
                for p, new in zip(flat(averages[name]), flat(layers), strict=True):
                    p.mul_(a).add_(new.detach(), alpha=1 - a)
    return named(layers) | named(averages["plastic"], "plastic.") | named(averages["stable"], "stable.")


def choose(weights, k):
    """Different ones, one after another, each with a chance in proportion to its weight; all alike if all are 0."""
    left, chosen = [float(w) for w in weights], []
    left = left if any(left) else [1.0] * len(left)
    while len(chosen) < k and any(left):
        at, i = random.random() * sum(left), 0
        while at >= left[i]:
            at, i = at - left[i], i + 1
        chosen.append(i)
        left[i] = 0.0
    return chosen


def gss(stream, sizes, h):
    layers, optimizer = one_net(sizes, h)
    memory, scores, waiting = [], [], []

    def in_groups(k):
        order = list(range(len(memory)))
        if order:
            random.shuffle(order)
        return [[memory[j] for j in order[i : i + k]] for i in range(0, len(order), k)]

    def gradient(examples):
        x, y = joined(examples)
        grads = torch.autograd.grad(F.cross_entropy(outputs(layers, x), y), flat(layers))
        return torch.cat([g.reshape(-1) for g in grads]).double()

    for _, x, y in stream:
        groups = in_groups(h.replay_batch_size) if h.replay_batch_size else []
        for i in range(h.n_iter):
            sgd(optimizer, F.cross_entropy(outputs(layers, x), y))
            if groups:
                x2, y2 = joined(groups[i % len(groups)])
                sgd(optimizer, F.cross_entropy(outputs(layers, x2), y2))
        for example in singles(x, y):
            waiting.append(example)
            if len(waiting) < h.candidates:
                continue
            directions = [gradient(group) for group in in_groups(max(1, h.replay_batch_size))[: h.n_compared]]
            closest = [
                max(float(F.cosine_similarity(gradient(one), d, dim=0)) for d in directions) if directions else 0.1
                for one in ([example] for example in waiting)
            ]
            if len(memory) < h.memories:
                memory += waiting
                scores += closest
            elif max(float(F.cosine_similarity(gradient(waiting), d, dim=0)) for d in directions) < h.change_th:
                least, most = min(scores), max(scores)
                rivals = choose([(score - least) / (most - least + 0.01) for score in scores], len(waiting))
                for candidate, score, rival in zip(waiting, closest, rivals, strict=False):
                    if choose([max(0.0, (score + 1) / 2), max(0.0, (scores[rival] + 1) / 2)], 1) == [1]:
                        memory[rival], scores[rival] = candidate, score
            waiting = []
    return named(layers)


def joint(stream, sizes, h):
    return online(stream, sizes, h)  # what makes it joint is its stream


LEARNERS = {
    f.__name__: f
    for f in (
        *(online, independent, taskinput, ewc, gem, eralg4, eralg5, meralg1, meralg6, meralg7, mer_minibatch),
        *(agem, der, derpp, er_ace, mir, lamaml, clser, gss, joint),
    )
}
