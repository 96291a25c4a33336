"""Are the engines the same algorithms? `python benchmarks/equivalence.py`

    engines   every replay learner at a middle size on both engines, 20 seeds: means, standard errors, and the
              difference in units of its standard error
    paper     the settings for which the original was run at the paper's size (benchmarks/paper_size.json), natively, on
              the same task files, five seeds, beside the original's numbers

Runs go side by side on all cores. Writes results/equivalence/<part>.md and .json.
"""

import argparse
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import metrics  # noqa: E402
from run import life, provenance, settings  # noqa: E402
from tasks import mnist  # noqa: E402
from tasks import taskset as tasks  # noqa: E402

METRICS = ("RA", "LA", "BTI", "FWT")
N_TRAIN = 3000  # images of each task, as in the original's runs of paper_size.json
MIDDLE = "--samples_per_task 150 --log_every 100000 --data_file mnist_permutations.pt"
MIDDLE_RUNS = {
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


def compare(first, second):
    """Means, standard errors, and the difference in units of its standard error, of two lists of numbers."""
    means = [statistics.mean(values) for values in (first, second)]
    errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in (first, second)]
    return {"means": means, "errors": errors, "difference": (means[0] - means[1]) / math.hypot(*errors)}


def table(title, names, rows):
    """A Markdown table; rows = [(what, metric, comparison, (n, n))]."""
    lines = [f"## {title}", "", f"| run | metric | {names[0]} | {names[1]} | difference / its standard error |"]
    lines += ["|---|---|---|---|---|"]
    for what, metric, found, n in rows:
        cells = [
            f"{mean:.4f} ± {error:.4f} ({k})" for mean, error, k in zip(found["means"], found["errors"], n, strict=True)
        ]
        lines.append(f"| {what} | {metric} | {cells[0]} | {cells[1]} | {found['difference']:+.2f} |")
    lines += ["", "mean ± standard error (number of seeds)", ""]
    return "\n".join(lines)


def engines():
    """Every replay learner on both engines."""
    seeds = range(20)
    keys = [(model, engine, seed) for model in MIDDLE_RUNS for engine in ("native", "reference") for seed in seeds]
    jobs = [(f"--model {m} {MIDDLE_RUNS[m]} {MIDDLE} --engine {e} --seed {s}", 10) for m, e, s in keys]
    found = dict(zip(keys, run_all(jobs), strict=True))
    rows = []
    for model in MIDDLE_RUNS:
        for metric in METRICS:
            first, second = ([found[model, e, s][metric] for s in seeds] for e in ("native", "reference"))
            rows.append((model, metric, compare(first, second), (len(first), len(second))))
    raw = [{"flags": job[0], **result} for job, result in zip(jobs, found.values(), strict=True)]
    return table(f"Native and reference engine, 10 tasks: {MIDDLE}", ("native", "reference"), rows), raw


def paper():
    """The native engine beside the original at the paper's size."""
    seeds = range(5)
    originals = json.loads((ROOT / "benchmarks" / "paper_size.json").read_text())
    jobs = [(f"{o['args']} --data_file {o['data']} --engine native --seed {s}", 20) for o in originals for s in seeds]
    found = run_all(jobs)
    rows = []
    for i, original in enumerate(originals):
        ours = found[i * len(seeds) : (i + 1) * len(seeds)]
        what = f"{original['data']}: {original['args'].split('--samples_per_task 1000 ')[1]}"
        for column, metric in enumerate(("RA", "BTI", "FWT")):
            theirs = [values[column] for values in original["ra_bti_fwt_by_seed"].values()]
            rows.append((what, metric, compare([one[metric] for one in ours], theirs), (len(ours), len(theirs))))
    raw = [{"flags": job[0], **result} for job, result in zip(jobs, found, strict=True)]
    return table("Native engine and the original, at the paper's size", ("native", "original"), rows), raw


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
