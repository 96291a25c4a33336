"""Native against reference engine, measured side by side in one run: `make bench`, or one part of it by name.

    steps        one SGD step of every learner, and one example at the paper's settings
    evaluation   one test image
    tasks        GEM and EWC with many past tasks; GEM with the threads that a run takes by itself
    runs         whole runs, as a user starts them, with their peak memory

Prints a table and writes it to results/bench/<date>.json. The time of an example is the median of several stretches.
The engines take turns and each has the better of two rounds, so that a machine that is busy for a while is busy for
both; a whole run is made once. No number here is a test.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from model.engine import _compiled  # noqa: E402
from run import life, provenance, settings  # noqa: E402
from run.evaluation import Evaluator, n_scored  # noqa: E402
from sweep.commands import experiments  # noqa: E402
from tasks.files import load_tasks  # noqa: E402

ENGINES = ("native", "reference")
ROTATIONS = "mnist_rotations.pt"
MANY = "mnist_manypermutations.pt"
SPLIT = "mnist_split.pt"


def make_experience(tasks, flags, engine, threads=1):
    """The Experience of a learner on an engine, nothing learned yet; threads 0: as many as a run takes by itself."""
    line = f"{flags} --data_file {tasks.name} --engine {engine} --threads {threads}"
    chosen, _ = settings.resolve(settings.parse(line.split()), tasks)
    torch.set_num_threads(chosen.threads)
    return life.make_experience(chosen, tasks)


def examples(experience, t, n):
    """n single examples of task t as `observe` takes them, cycling through the first of its training images."""
    train = experience.tasks[t].train
    for i in range(n):
        index = [i % len(train)]
        yield train.inputs(index), t, torch.from_numpy(train.labels[index])


def fill(experience):
    """Fills the memory of a replay learner, one task after another, without learning; of any other nothing."""
    learner, n_tasks = experience.learner, len(experience.tasks)
    for t in range(n_tasks if hasattr(learner, "memory") else 0):
        for x, _, y in examples(experience, t, -(-learner.memory.capacity // n_tasks)):
            learner.memory.remember(learner.examples.put(0, x, t, y)[0])


def seconds_per_example(experience, t, budget=1.0, stretches=5):
    """Median over stretches of the time that `observe` takes for an example of task t; all last `budget` together."""
    learner, source = experience.learner, examples(experience, t, 10**9)

    def stretch(n):
        batch = [next(source) for _ in range(n)]
        begin = time.perf_counter()
        for x, task, y in batch:
            learner.observe(x, task, y)
        return (time.perf_counter() - begin) / n

    once = stretch(2)
    n = max(1, min(2000, int(budget / stretches / once)))
    return statistics.median(stretch(n) for _ in range(stretches))


def paired(make, measure):
    """{engine: measure(make(engine))}, best of two rounds in which the engines take turns."""
    made = {engine: make(engine) for engine in ENGINES}
    rounds = [{engine: measure(made[engine]) for engine in ENGINES} for _ in range(2)]
    return {engine: min(one[engine] for one in rounds) for engine in ENGINES}


class Table:
    """Rows of (what, unit, native, reference), printed as they come."""

    def __init__(self):
        self.rows = []
        print(f"{'':58} {'native':>12} {'reference':>12}  ratio")

    def add(self, what, unit, native, reference=None, note=""):
        ratio = None if reference is None else reference / native
        row = {"what": what, "unit": unit, "native": native, "reference": reference, "ratio": ratio, "note": note}
        self.rows.append(row)
        shown = [f"{value:12.4g}" if value is not None else f"{'':12}" for value in (native, reference)]
        print(f"{f'{what} [{unit}]':58} {shown[0]} {shown[1]}  {f'{ratio:.1f}x' if ratio else ''} {note}", flush=True)


def steps_per_example(args):
    """SGD steps (or batch steps) that a learner makes for one example."""
    per_draw = {
        "meralg1": args.batches_per_example * (1 + args.replay_batch_size),
        "meralg6": args.batches_per_example * (1 + args.replay_batch_size),
        "meralg7": 1 + args.replay_batch_size,
    }
    return per_draw.get(args.model, 1)


def bench_steps(table):
    """The experiments of mer_examples.sh on Rotations: an example, the memory being full, and one of its SGD steps."""
    tasks = load_tasks(str(ROOT / "data"), ROTATIONS)
    for experiment in experiments():
        if experiment["data_file"] != ROTATIONS or experiment["model"] in ("gem", "ewc"):  # bench_tasks has those
            continue
        words = {True: "yes", False: "no"}
        given = {name: words[value] if isinstance(value, bool) else value for name, value in experiment.items()}
        flags = " ".join(f"--{name} {value}" for name, value in given.items() if name != "data_file")
        args = settings.parse(flags.split())

        def make(engine, flags=flags):
            experience = make_experience(tasks, flags, engine)
            fill(experience)
            return experience

        def measure(experience):
            return seconds_per_example(experience, len(tasks.tasks) - 1)

        times = {engine: 1e6 * value for engine, value in paired(make, measure).items()}
        read = {flag.name for flag in args.learner.flags}
        shown = ("memories", "replay_batch_size", "batches_per_example")
        name = " ".join([args.model, *(str(getattr(args, flag)) for flag in shown if flag in read)])
        table.add(f"{name}: example", "us", times["native"], times["reference"])
        n = steps_per_example(args)
        if n > 1:
            table.add(f"{name}: SGD step of {n}", "us", times["native"] / n, times["reference"] / n)


def bench_evaluation(table):
    """Time of a test image on one core."""
    for name in (ROTATIONS, MANY):
        tasks = load_tasks(str(ROOT / "data"), name)
        n_images = sum(n_scored(len(task.test)) for task in tasks.tasks)

        def measure(experience, tasks=tasks):
            evaluator = Evaluator(dict(enumerate(tasks.tasks)), threads=1)
            begin = time.perf_counter()
            evaluator.evaluate(experience.learner).accuracies()
            return time.perf_counter() - begin

        def make(engine, tasks=tasks):
            experience = make_experience(tasks, "--model online --samples_per_task 200 --lr 0.003", engine)
            for x, t, y in examples(experience, 0, 500):
                experience.learner.observe(x, t, y)
            measure(experience)  # the images' compiled form is made once
            return experience

        times = paired(make, measure)
        table.add(f"{name}: test image", "us", *(1e6 * times[engine] / n_images for engine in ENGINES))


def bench_tasks(table):
    """Time of an example of EWC and GEM with many past tasks."""
    tasks = load_tasks(str(ROOT / "data"), MANY)
    for n_past in (5, 10, 20, 100):
        last = min(n_past, len(tasks.tasks) - 1)

        def ewc(engine, last=last):
            flags = "--model ewc --lr 0.003 --n_memories 10 --memory_strength 1 --samples_per_task 10"
            experience = make_experience(tasks, flags, engine)
            for t in range(last + 1):
                for x, _, y in examples(experience, t, 10):
                    experience.learner.observe(x, t, y)
            return experience

        def gem(engine, last=last, n_memories=256, threads=0):
            flags = f"--model gem --lr 0.01 --n_memories {n_memories} --memory_strength 0.5 --samples_per_task 10"
            experience = make_experience(tasks, flags, engine, threads)
            for t in range(last):
                for x, _, y in examples(experience, t, n_memories):
                    learner = experience.learner
                    learner.memory.remember(learner.examples.put(0, x, t, y), t)
            return experience

        def measure(experience, last=last):
            return seconds_per_example(experience, last)

        def gem_51(engine, make=gem):
            return make(engine, n_memories=51)

        def gem_alone(engine, make=gem):
            return make(engine, threads=1)

        def compare(what, make, measure=measure, last=last):
            table.add(f"{what}, {last} past tasks: example", "us", *(1e6 * t for t in paired(make, measure).values()))

        compare("ewc", ewc)
        compare("gem, 51 memories", gem_51)
        if last <= 20:
            compare("gem, 256 memories", gem)
            compare("gem, 256 memories, one thread", gem_alone)


def whole_run(flags):
    """(.json of the run, wall seconds) of `python main.py flags`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "main.py"), *flags.split(), "--save_path", folder]
        begin = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        return json.loads(next(Path(folder).glob("*.json")).read_text()), seconds


def bench_runs(table):
    """Whole runs at the paper's size, from the command line."""
    common = "--samples_per_task 1000 --data_file mnist_rotations.pt"
    short = {
        "online": f"--model online --lr 0.0003 {common}",
        "eralg4 5120": f"--model eralg4 --lr 0.1 --memories 5120 --replay_batch_size 25 {common}",
    }
    for name, flags in short.items():
        found = {engine: whole_run(f"{flags} --engine {engine}") for engine in ENGINES}
        table.add(f"{name}: whole run", "s", *(found[engine][1] for engine in ENGINES), note=retained(found))
        peaks = [found[engine][0]["peak_memory_bytes"] / 1e6 for engine in ENGINES]
        table.add(f"{name}: peak memory", "MB", *peaks)

    long = {
        "meralg1 5120": "--model meralg1 --lr 0.03 --beta 0.03 --replay_batch_size 100 --batches_per_example 10 "
        + common,
        "online, 100 tasks": f"--model online --lr 0.003 --samples_per_task 200 --data_file {MANY}",
    }
    for name, flags in long.items():
        found = whole_run(flags)
        reference, note = extrapolated(flags)
        table.add(f"{name}: whole run", "s", found[1], reference, f"{note}; {retained({'native': found})}")
        table.add(f"{name}: peak memory", "MB", found[0]["peak_memory_bytes"] / 1e6)


def extrapolated(flags, n=200):
    """(seconds, a note) of a run on the reference engine, with the threads that it takes by itself."""
    tasks = load_tasks(str(ROOT / "data"), settings.parse(flags.split()).data_file)
    experience = make_experience(tasks, flags, "reference", threads=0)
    fill(experience)
    batch = list(examples(experience, len(tasks.tasks) - 1, n))
    begin = time.perf_counter()
    for x, t, y in batch:
        experience.learner.observe(x, t, y)
    per_example = (time.perf_counter() - begin) / n
    begin = time.perf_counter()
    experience.evaluator.evaluate(experience.learner).accuracies()
    evaluation = time.perf_counter() - begin
    stream = experience.stream
    n_evaluations = stream.n_evaluations(experience.log_every)
    seconds = stream.n_examples * per_example + n_evaluations * evaluation
    note = f"reference extrapolated from {n} examples, any memory being full, and one of {n_evaluations} evaluations"
    return seconds, note


def retained(found):
    return ", ".join(f"RA {engine} {one[0]['stats']['RA']:.3f}" for engine, one in found.items())


def bench_split(table):
    """Split MNIST, task- and class-incremental: an example of online SGD and of replay, and a test image."""
    tasks = load_tasks(str(ROOT / "data"), SPLIT)
    n_images = sum(n_scored(len(task.test)) for task in tasks.tasks)
    for scenario in ("task", "class"):
        for name, own in (("online", ""), ("eralg4", "--memories 500 --replay_batch_size 25")):
            flags = f"--model {name} --lr 0.03 --samples_per_task 1000 --scenario {scenario} {own}"

            def make(engine, flags=flags):
                experience = make_experience(tasks, flags, engine)
                fill(experience)
                return experience

            def learn(experience):
                return seconds_per_example(experience, len(tasks.tasks) - 1)

            def evaluate(experience):
                begin = time.perf_counter()
                experience.evaluator.evaluate(experience.learner).accuracies()
                return (time.perf_counter() - begin) / n_images

            times = paired(make, learn)
            table.add(f"split, {scenario}: {name}: example", "us", *(1e6 * times[engine] for engine in ENGINES))
        times = paired(make, evaluate)
        table.add(f"split, {scenario}: test image", "us", *(1e6 * times[engine] for engine in ENGINES))


PARTS = {
    "steps": bench_steps,
    "evaluation": bench_evaluation,
    "tasks": bench_tasks,
    "split": bench_split,
    "runs": bench_runs,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"parts to measure: {', '.join(PARTS)}; all if none is named")
    chosen = parser.parse_args().part or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    table = Table()
    for part in chosen:
        PARTS[part](table)
    folder = ROOT / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    where = {"cpu": provenance.cpu_name(), "cores": os.cpu_count(), "kernels": _compiled.variant}
    where |= {"versions": provenance.versions(), **provenance.commit()}
    path = folder / f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}.json"
    path.write_text(
        json.dumps({"date": provenance.now(), "machine": where, "parts": chosen, "rows": table.rows}, indent=1)
    )
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
