"""Are the engines the same algorithms? `python benchmarks/equivalence.py`

    engines   every learner at a middle size on both engines; 10 seeds, or 40 where each engine has draws of its own
    paper     the settings for which the original was run at the paper's size (benchmarks/paper_size.json), natively, on
              the same task files, five seeds, beside the original's two or three

Two programs are called equivalent where two one-sided tests (TOST; Schuirmann 1987) at the 5 % level exclude that their
mean RA differs by a point (.01) or more. The margin was set before the runs. A seed gives both engines the same stream
and the same first weights, so `engines` tests the differences seed by seed. Differences that are not excluded are
not shown either: those need more seeds. Of other metrics, and beside the original, means and differences are given.
Runs go side by side on all cores. Writes results/equivalence/<part>.md and .json.
"""

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import stats  # noqa: E402

import metrics  # noqa: E402
from run import life, provenance, settings  # noqa: E402
from tasks import mnist  # noqa: E402
from tasks import taskset as tasks  # noqa: E402

METRICS = ("RA", "LA", "BTI", "FWT")
N_TRAIN = 3000  # images of each task, as in the original's runs of paper_size.json
MIDDLE = "--samples_per_task 150 --log_every 100000 --data_file mnist_permutations.pt"
MARGIN = 0.01  # of RA: a point
LEVEL = 0.05
SEEDS, SEEDS_OF_DRAWS = range(10), range(40)  # what differs within a seed is rounding, or which examples are drawn
MIDDLE_RUNS = {
    "online": "--lr 0.003",
    "independent": "--lr 0.01",
    "taskinput": "--lr 0.01",
    "ewc": "--lr 0.01 --n_memories 10 --memory_strength 10",
    "gem": "--lr 0.01 --n_memories 10 --memory_strength 0",
    "eralg4": "--lr 0.03 --memories 200 --replay_batch_size 10",
    "eralg5": "--lr 0.01 --memories 200 --replay_batch_size 10",
    "meralg1": "--lr 0.03 --beta 0.1 --gamma 1 --memories 200 --replay_batch_size 10 --batches_per_example 3",
    "meralg6": "--lr 0.03 --gamma 0.3 --memories 200 --replay_batch_size 10",
    "meralg7": "--lr 0.03 --gamma 0.1 --memories 200 --replay_batch_size 10 --s 2",
}


def task_set(name, n_tasks):
    """The task files of paper_size.json: the first 3,000 training images of every task, all test images."""
    images = mnist.read()
    few = images._replace(train_images=images.train_images[:N_TRAIN], train_labels=images.train_labels[:N_TRAIN])
    make = tasks.rotations if "rotations" in name else tasks.permutations
    return tasks.TaskSet(make(few, n_tasks=n_tasks), name, f"the first {N_TRAIN} training images of MNIST")


def run(job):
    """{metric: value} of one run; job = (flags, number of tasks)."""
    flags, n_tasks = job
    given = settings.parse([*flags.split(), "--threads", "1"])
    data = task_set(given.data_file, n_tasks)
    torch.set_num_threads(1)
    experience = life.make_experience(settings.resolve(given, data)[0], data)
    for _ in experience.learn():
        pass
    summary = metrics.summarise(experience.result_t, experience.result_a())
    return {metric: float(getattr(summary, metric)) for metric in METRICS}


def run_all(jobs):
    """[result of each job], side by side on all cores."""
    with ProcessPoolExecutor(settings.n_usable_cores(), mp_context=get_context("spawn")) as pool:
        found = []
        for job, result in zip(jobs, pool.map(run, jobs), strict=True):
            found.append(result)
            print(f"{len(found)}/{len(jobs)}  RA {result['RA']:.4f}  {job[0]}", file=sys.stderr, flush=True)
        return found


def equivalence(differences):
    """(p, low, high): TOST's p for a mean difference within MARGIN, and the difference's 90 % confidence interval.

    p is the larger of the two one-sided t tests': below LEVEL, the interval lies within the margin.
    """
    differences = np.asarray(differences)
    if np.ptp(differences) == 0:  # the t tests have no scale
        return float(abs(differences[0]) >= MARGIN), float(differences[0]), float(differences[0])
    tests = [
        stats.ttest_1samp(differences, side * MARGIN, alternative=than) for side, than in ((-1, "greater"), (1, "less"))
    ]
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(1 - 2 * LEVEL)
    return float(max(test.pvalue for test in tests)), float(low), float(high)


def mean_and_sd(values):
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 2 else ""  # of two runs it says nothing
    return f"{statistics.mean(values):.4f}{sd} ({len(values)})"


def engines():
    """Every learner on both engines."""
    seeds = {model: SEEDS_OF_DRAWS if "replay" in flags else SEEDS for model, flags in MIDDLE_RUNS.items()}
    keys = [(model, engine, seed) for model in seeds for engine in ("native", "reference") for seed in seeds[model]]
    jobs = [(f"--model {m} {MIDDLE_RUNS[m]} {MIDDLE} --engine {e} --seed {s}", 10) for m, e, s in keys]
    found = dict(zip(keys, run_all(jobs), strict=True))
    lines = [f"## Native and reference engine, 10 tasks: {MIDDLE}", ""]
    lines += ["| run | metric | native | reference | difference, 90 % interval | within a point of RA (TOST) |"]
    lines += ["|---|---|---|---|---|---|"]
    for model in MIDDLE_RUNS:
        for metric in METRICS:
            first, second = ([found[model, e, s][metric] for s in seeds[model]] for e in ("native", "reference"))
            p, low, high = equivalence(np.subtract(first, second))
            verdict = f"{'yes' if p < LEVEL else 'not shown'}, p = {p:.2g}" if metric == "RA" else ""
            cells = [model, metric, mean_and_sd(first), mean_and_sd(second), f"{low:+.4f} to {high:+.4f}", verdict]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "mean ± standard deviation (number of seeds); differences within seeds", ""]
    raw = [{"flags": job[0], **result} for job, result in zip(jobs, found.values(), strict=True)]
    return "\n".join(lines), raw


def paper():
    """The native engine beside the original at the paper's size."""
    seeds = range(5)
    originals = json.loads((ROOT / "benchmarks" / "paper_size.json").read_text())
    jobs = [(f"{o['args']} --data_file {o['data']} --engine native --seed {s}", 20) for o in originals for s in seeds]
    found = run_all(jobs)
    lines = ["## Native engine and the original, at the paper's size", ""]
    lines += ["| run | metric | native | original | difference |", "|---|---|---|---|---|"]
    for i, original in enumerate(originals):
        ours = found[i * len(seeds) : (i + 1) * len(seeds)]
        what = f"{original['data']}: {original['args'].split('--samples_per_task 1000 ')[1]}"
        for column, metric in enumerate(("RA", "BTI", "FWT")):
            theirs = [values[column] for values in original["ra_bti_fwt_by_seed"].values()]
            mine = [one[metric] for one in ours]
            difference = f"{statistics.mean(mine) - statistics.mean(theirs):+.4f}"
            lines.append(f"| {what} | {metric} | {mean_and_sd(mine)} | {mean_and_sd(theirs)} | {difference} |")
    lines += ["", "mean ± standard deviation (number of seeds); the original's two or three seeds allow no test", ""]
    raw = [{"flags": job[0], **result} for job, result in zip(jobs, found, strict=True)]
    return "\n".join(lines), raw


PARTS = {"engines": engines, "paper": paper}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"{' or '.join(PARTS)}; both if none is named")
    chosen = parser.parse_args().part or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    folder = ROOT / "results" / "equivalence"
    folder.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        text, raw = PARTS[part]()
        where = {
            "cpu": provenance.cpu_name(),
            "cores": os.cpu_count(),
            "versions": provenance.versions(),
            **provenance.commit(),
        }
        (folder / f"{part}.md").write_text(text)
        (folder / f"{part}.json").write_text(
            json.dumps({"date": provenance.now(), "machine": where, "runs": raw}, indent=1)
        )
        print(text)


if __name__ == "__main__":
    main()
