"""Makes result folders for the tests of the report: invented, but shaped like the real thing.

`python tests/result_factory.py DIR` writes 60 experiments like those of the paper, five seeds each.
"""

import argparse
import json
import sys
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

DATA = {
    "mnist_rotations.pt": {"n_tasks": 20, "examples": 1000, "transfer": 0.55},
    "mnist_permutations.pt": {"n_tasks": 20, "examples": 1000, "transfer": 0.02},
    "mnist_manypermutations.pt": {"n_tasks": 100, "examples": 200, "transfer": 0.02},
}
# learner: accuracy right after learning, what is forgotten without memory, the share of it that 5120 memories save
KINDS = {
    "online": (0.80, 0.45, 0.0),
    "independent": (0.72, 0.0, 0.0),
    "taskinput": (0.78, 0.28, 0.0),
    "ewc": (0.78, 0.36, 0.0),
    "gem": (0.83, 0.42, 0.75),
    "eralg4": (0.84, 0.40, 0.80),
    "eralg5": (0.84, 0.40, 0.85),
    "meralg1": (0.88, 0.38, 0.92),
    "meralg6": (0.87, 0.38, 0.88),
    "meralg7": (0.86, 0.38, 0.86),
}
NO_MATTER_FOR_BITS = ("save_path", "data_path", "data_file", "threads")
FIRST = datetime(2026, 1, 5, 9, 0, tzinfo=timezone.utc)


def simulate(model, memory, n_tasks, examples, transfer, seed, log_every=100):
    """(result_t, result_a, examples_seen) of an invented run: tasks are learned quickly and forgotten slowly."""
    rng = np.random.default_rng([seed, sum(map(ord, model)), memory, n_tasks])
    learned, lost, saved = KINDS[model]
    lost *= 1 - saved * (np.log2(max(memory, 1)) / np.log2(5120)) ** 2
    top = learned - 0.05 * rng.random(n_tasks)
    forgets = lost * (0.7 + 0.6 * rng.random(n_tasks))
    start = 0.1 + 0.03 * rng.standard_normal(n_tasks)
    result_t, result_a, seen = [], [], []
    end = n_tasks * examples
    for at in sorted({*range(0, end, log_every), *range(0, end, examples), end}):
        task = max(0, (at - 1) // examples)
        place = at / examples
        age = place - np.arange(n_tasks)
        ahead = start + transfer * (1 - np.exp(-place / 4)) * np.exp(np.minimum(age, 0) / 6)
        during = ahead + (top - ahead) * (1 - np.exp(-6 * np.clip(age, 0, 1)))
        after = during - forgets * (1 - np.exp(-np.maximum(age - 1, 0) / (n_tasks / 3)))
        row = np.where(age > 0, after, ahead) + 0.012 * rng.standard_normal(n_tasks)
        result_t.append(task)
        result_a.append(np.round(np.clip(row, 0, 1), 4).astype(np.float32).tolist())
        seen.append(at)
    return result_t, result_a, seen


def summary(result_t, result_a):
    """The summaries, matrix and baseline for tasks that come in order of index, by plain loops."""
    n_tasks = len(result_a[0])
    matrix = [[row for t, row in zip(result_t, result_a, strict=True) if t == task][-1] for task in range(n_tasks)]
    baseline = result_a[0]
    RA = sum(matrix[-1]) / n_tasks
    LA = sum(matrix[j][j] for j in range(n_tasks)) / n_tasks
    BTI = sum(matrix[-1][j] - matrix[j][j] for j in range(n_tasks)) / n_tasks
    FWT = sum(matrix[j - 1][j] - baseline[j] for j in range(1, n_tasks)) / n_tasks
    seen = [sum(row[: t + 1]) / (t + 1) for t, row in zip(result_t, result_a, strict=True)][1:]
    drops = [max(row[j] for row in matrix[:-1]) - matrix[-1][j] for j in range(n_tasks - 1)]
    AAA, forgetting = sum(seen) / len(seen), sum(drops) / max(len(drops), 1)
    return {"RA": RA, "LA": LA, "BTI": BTI, "FWT": FWT, "AAA": AAA, "forgetting": forgetting}, matrix, baseline


def result(
    model="meralg1",
    data_file="mnist_rotations.pt",
    seed=0,
    memory=5120,
    n_tasks=None,
    examples=None,
    hours=0.0,
    **flags,
):
    """The dictionary of one .json file. flags override those of the command line."""
    kind = DATA[data_file]
    n_tasks, examples = n_tasks or kind["n_tasks"], examples or kind["examples"]
    args = {
        "model": model,
        "n_hiddens": 100,
        "n_layers": 2,
        "lr": 0.03,
        "n_epochs": 1,
        "batch_size": 1,
        "seed": seed,
        "log_every": 100,
        "save_path": "results/",
        "data_path": "data/",
        "data_file": data_file,
        "samples_per_task": examples,
        "shuffle_tasks": False,
        "cuda": False,
        "engine": "native",
        "draws": "uniform",
        "threads": 1,
    }
    if model.startswith(("er", "mer")):
        args |= {"memories": memory, "replay_batch_size": 10}
    if model in ("gem", "ewc"):
        args |= {"n_memories": memory // n_tasks, "memory_strength": 0.0}
    if model.startswith("mer"):
        args["gamma"] = 0.3
    args |= flags
    result_t, result_a, seen = simulate(model, memory, n_tasks, examples, kind["transfer"], seed, args["log_every"])
    stats, matrix, baseline = summary(result_t, result_a)
    finished = FIRST + timedelta(hours=hours, minutes=seed)
    seconds = {"gem": 260.0, "ewc": 40.0, "independent": 6.0}.get(model, 9.0) * (1 + 0.03 * seed)
    seconds *= 1 + 0.2 * np.log2(1 + memory) * (5 if model.startswith("mer") else 1)
    name = (
        f"{model}_{data_file}_{finished:%Y_%m_%d_%H_%M_%S}_"
        + uuid.uuid5(uuid.NAMESPACE_OID, repr((sorted(args.items()), hours))).hex
    )
    return {
        "format": "mer-result/1",
        "name": name,
        "model": model,
        "args": args,
        "science": {flag: value for flag, value in args.items() if flag not in NO_MATTER_FOR_BITS},
        "seed": seed,
        "engine": args["engine"],
        "draws": args["draws"],
        "threads": args["threads"],
        "data": {
            "file": data_file,
            "origin": "built in memory from the shipped MNIST files, data seed 0",
            "identity": uuid.uuid5(uuid.NAMESPACE_OID, data_file).hex * 2,
            "n_tasks": n_tasks,
            "n_inputs": 784,
            "n_outputs": 10,
            "task_order": list(range(n_tasks)),
        },
        "stats": stats,
        "result_t": result_t,
        "result_a": result_a,
        "examples_seen": seen,
        "accuracy_matrix": matrix,
        "baseline": baseline,
        "seconds": {"data": 0.5, "training": 0.8 * seconds, "evaluation": 0.2 * seconds, "total": seconds},
        "peak_memory_bytes": 300_000_000,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "quadprog": "0.1.14"},
        "code": "feed" * 16,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "host": {"name": "anvil", "cpu": "AMD EPYC 9R14", "cores": 2},
        "started": (finished - timedelta(seconds=seconds)).isoformat(),
        "finished": finished.isoformat(),
        "notes": {"qp_repairs": 3} if model == "gem" else {},
    }


def alignment(result_t, seed=0):
    """What --alignment measures in an invented run whose tasks come in order of index."""
    rng, n_tasks = np.random.default_rng(seed), max(result_t) + 1

    def pair(t, scale):
        return [None if t == 0 else scale * rng.standard_normal(), scale * (1 + rng.standard_normal())]

    matrix = 0.1 * rng.standard_normal((n_tasks, n_tasks))
    matrix = ((matrix + matrix.T) / 2).tolist()
    return {
        "measured": [{"inner": pair(t, 3.0), "cosine": pair(t, 0.05)} for t in result_t],
        "latest": {"tasks": list(range(n_tasks)), "inner": matrix, "cosine": matrix},
    }


def write_json(folder, saved):
    """Writes a result() under its name; returns the path."""
    path = Path(folder) / f"{saved['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved))
    return path


def write_txt(folder, saved):
    """Writes the original's text file of a result(); returns the path."""
    lines = [" ".join(f"{value:.4f}" for value in row) for row in (saved["baseline"], *saved["accuracy_matrix"])]
    stats = saved["stats"]
    tail = [
        "",
        f"Final Accuracy: {stats['RA']:.4f}",
        f"Backward: {stats['BTI']:.4f}",
        f"Forward:  {stats['FWT']:.4f}",
        "",
    ]
    path = Path(folder) / f"{saved['name']}.txt"
    path.write_text("\n".join([lines[0], "|", *lines[1:], *tail]))
    return path


def write_pt(folder, saved, **extra):
    """Writes the original's .pt of a result(); returns the path."""
    import torch

    ours = ("engine", "draws", "threads")
    flags = {k: v for k, v in saved["args"].items() if k not in ours} | {
        "cuda": "no",
        "shuffle_tasks": "no",
        "beta": 1.0,
    }
    args = argparse.Namespace(**flags | extra)
    stats = saved["stats"]
    numbers = [torch.tensor(stats[key]) for key in ("RA", "BTI", "FWT")]
    one_liner = (
        f"results/{saved['name']}: {vars(args)} # {stats['RA']:.3f} {stats['BTI']:.3f} {stats['FWT']:.3f} # 123.456"
    )
    weights = {"net.net.0.weight": torch.zeros(100, 784)}
    path = Path(folder) / f"{saved['name']}.pt"
    torch.save(
        (torch.Tensor(saved["result_t"]), torch.Tensor(saved["result_a"]), weights, numbers, one_liner, args), path
    )
    return path


def paper(seeds=range(5)):
    """result() of every learner, memory size and data set of the paper, for these seeds."""
    for data_file, kind in DATA.items():
        sizes = (5120, 500) if kind["n_tasks"] == 100 else (5120, 500, 200)
        for model in KINDS:
            own = {"ewc": (10 * kind["n_tasks"],), "online": (0,), "independent": (0,), "taskinput": (0,)}.get(
                model, sizes
            )
            for memory in own:
                for seed in seeds:
                    yield result(model, data_file, seed, memory)


if __name__ == "__main__":
    for made in paper():
        write_json(sys.argv[1], made)
