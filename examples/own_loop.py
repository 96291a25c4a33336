"""MER in a training loop of one's own: a small language model learns three domains of text, one after another.

python examples/own_loop.py                       three ways, three seeds: a table, and a picture where matplotlib is
python examples/own_loop.py --ways algorithm_6    the paper's Algorithm 6, one sequence a step, which takes longer

The model is a transformer over characters; the texts are this repository's documents, sums, and code of Python's
standard library. Everything that is MER is in `mer` and `algorithm_6`; the rest is what a training loop has anyway.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.torch_loop import Reptile, Reservoir  # noqa: E402  that file alone, copied anywhere, is enough

CONTEXT, BATCH = 32, 8  # characters of a sequence; new sequences a step
MEMORIES = 500  # sequences that the reservoir holds


# three ways to learn from a stream of batches, each a list of BATCH sequences


def plain(model, stream, seed, lr=3e-3):
    """The new sequences alone."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for new in stream:
        step(model, optimizer, new)
        yield


def replay(model, stream, seed, lr=1e-2):
    """As many drawn from a reservoir beside them."""
    return mer(model, stream, seed, lr, every=None)  # no block ever ends


def mer(model, stream, seed, lr=1e-2, every=5, epsilon=0.3):
    """Replay, and Reptile over every k steps. (Abbes et al. 2025, arXiv 2508.01908)"""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    Reptile(optimizer, every, epsilon)
    memory = Reservoir(MEMORIES, seed)
    for new in stream:
        step(model, optimizer, new + memory.draw(BATCH))
        memory.extend(new)
        yield


def algorithm_6(model, stream, seed, lr=0.1, k=3, gamma=0.3):
    """One SGD step for each of k draws and the new sequence, Reptile over them. (Riemer et al. 2019, Algorithm 6)"""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    reptile, memory = Reptile(optimizer, step=gamma), Reservoir(MEMORIES, seed)
    for new in stream:
        for current in new:
            for sequence in [*memory.draw(k), current]:
                step(model, optimizer, [sequence])
            reptile.interpolate()
            memory.add(current)
        yield


WAYS = {way.__name__: way for way in (plain, replay, mer, algorithm_6)}


def step(model, optimizer, sequences):
    """One step of the optimizer on the mean loss of the sequences."""
    optimizer.zero_grad()
    loss_of(model, torch.stack(sequences)).backward()
    optimizer.step()


def loss_of(model, sequences):
    """Mean cross-entropy of the next character, in nats; sequences (B, CONTEXT + 1)."""
    return F.cross_entropy(model(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten())


# the model


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a layer norm and beside a residual."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads, self.norm = n_heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, L, d)
        attended = F.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Transformer(nn.Module):
    """(B, L) characters to (B, L, 128) logits of the next ones; L <= CONTEXT."""

    def __init__(self, width=64, n_blocks=2, n_heads=4):
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, n_heads) for _ in range(n_blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))

    def forward(self, x):
        return self.head(self.blocks(self.characters(x) + self.places.weight[: x.shape[1]]))


# the texts


def texts():
    """{domain: its text} in ASCII, in the order in which they are learned."""
    documents = [ROOT / "LICENSE", *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("d*/**/*.md"))]
    modules = [argparse, sys.modules["threading"], sys.modules["inspect"]]
    generator = torch.Generator().manual_seed(0)
    sums = (f"{a}+{b}={a + b}\n" for a, b in torch.randint(100, (6000, 2), generator=generator).tolist())
    return {
        "documents": ascii_of("\n".join(path.read_text(encoding="utf-8") for path in documents)),
        "sums": "".join(sums),
        "code": ascii_of("\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules)),
    }


def ascii_of(text):
    return text.encode("ascii", "replace").decode()


def halves(text):
    """(train, test): the characters' numbers, of the first nine tenths and of the rest."""
    numbers = torch.tensor(list(text.encode("ascii")))
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:]


def sequences(numbers, n, generator):
    """n sequences of CONTEXT + 1 characters from random places."""
    starts = torch.randint(len(numbers) - CONTEXT, (n,), generator=generator).tolist()
    return [numbers[start : start + CONTEXT + 1] for start in starts]


# the experiment


def learn(name, seed, n_steps, every=50):
    """Learns the domains in one of the WAYS. Returns (steps, losses): E numbers; E rows of each domain's test loss."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, generator = Transformer(), torch.Generator().manual_seed(seed)
    parts = [halves(text) for text in texts().values()]
    tests = [torch.stack(sequences(test, 60, torch.Generator().manual_seed(0))) for _, test in parts]
    stream = (sequences(train, BATCH, generator) for train, _ in parts for _ in range(n_steps))
    steps, losses = [], []

    @torch.no_grad()
    def measure(number):
        steps.append(number)
        losses.append([loss_of(model, test).item() for test in tests])

    measure(0)
    for number, _ in enumerate(WAYS[name](model, stream, seed), 1):
        if number % every == 0 or number % n_steps == 0:
            measure(number)
    return steps, losses


def table(results, domains, n_steps):
    """Lines: of each way, the losses at the end, mean +- standard deviation over seeds; and what was forgotten."""
    yield f"{'test loss at the end, nats a character':40}" + "".join(f"{name:>16}" for name in [*domains, "mean"])
    for name, runs in results.items():
        final = torch.tensor([losses[-1] for _, losses in runs])  # (seeds, domains)
        final = torch.cat([final, final.mean(1, keepdim=True)], 1)
        spread = [f"± {s:.3f}" for s in final.std(0)] if len(runs) > 1 else [" " * 7] * final.shape[1]
        yield f"{name:40}" + "".join(f"{m:9.3f} {s}" for m, s in zip(final.mean(0), spread, strict=True))
    yield f"{'its rise since the domain was learned':40}"
    for name, runs in results.items():
        rises = []
        for steps, losses in runs:
            ends = [losses[steps.index((i + 1) * n_steps)][i] for i in range(len(domains))]
            rises.append([losses[-1][i] - ends[i] for i in range(len(domains))])
        yield f"{name:40}" + "".join(f"{value:+9.3f}       " for value in torch.tensor(rises).mean(0))


def draw(results, domains, n_steps, path):
    """A picture: for each domain, its test loss over the steps in each way; bands are all seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for i, (axes, domain) in enumerate(zip(figure.subplots(1, len(domains), sharey=True), domains, strict=True)):
        axes.axvspan(i * n_steps, (i + 1) * n_steps, color="0.93")
        for name, runs in results.items():
            losses = torch.tensor([losses for _, losses in runs])[:, :, i]
            (line,) = axes.plot(runs[0][0], losses.mean(0), label=name)
            axes.fill_between(
                runs[0][0], losses.amin(0), losses.amax(0), color=line.get_color(), alpha=0.2, linewidth=0
            )
        axes.set(title=f"{domain} (learned where it is grey)", xlabel="steps")
    figure.axes[0].set(ylabel="test loss, nats a character", ylim=(0, 7))
    figure.axes[-1].legend()
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["plain", "replay", "mer"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="for each domain (300)")
    parser.add_argument("--picture", type=Path, default=Path("own_loop.png"), help="(own_loop.png)")
    args = parser.parse_args(arguments)
    begin, domains = time.perf_counter(), list(texts())
    jobs = [(name, seed, args.steps) for seed in args.seeds for name in args.ways]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(learn, *zip(*jobs, strict=True)))
    results = {name: [it for job, it in zip(jobs, found, strict=True) if job[0] == name] for name in args.ways}
    print("\n".join(table(results, domains, args.steps)))
    try:
        draw(results, domains, args.steps, args.picture)
        print(f"picture: {args.picture}")
    except ImportError:
        print("no picture: pip install matplotlib")
    print(f"{time.perf_counter() - begin:.0f} seconds")


if __name__ == "__main__":
    main()
