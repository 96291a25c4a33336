"""What the native engine takes, beside others in one run: `make bench`, or one part of it by name.

    kernels      pieces of the kernels' work, against the kernels of an earlier commit
    suite        the whole of mer_examples.sh, estimated from its parts, against the same commit
    peers        the same pieces of work in plain PyTorch
    hits         evaluation in fixed point: images whose answer is not the float kernel's

and against the reference engine:

    steps        one SGD step of every learner, and one example at the paper's settings
    successors   one example of the learners that came after, at batch size 1 with 10 draws
    evaluation   one test image; an evaluation of 20 tasks, and what --alignment 10 adds to it
    tasks        GEM and EWC with many past tasks; GEM with the threads that a run takes by itself
    split        an example and a test image of Split MNIST, task- and class-incremental
    runs         whole runs, as a user starts them, with their peak memory
    cuda         the native engine on one core, against the reference engine on a GPU where there is one

Prints a table and writes it to results/bench/<date>.json. The time of an example is the median of several stretches.
The engines take turns and each has the better of two rounds, so that a machine that is busy for a while is busy for
both; a whole run is made once. No number here is a test.
"""

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

try:
    from model.engine import _compiled
except ImportError as error:
    print(f"error: nothing to measure: {error}; run python setup.py build_ext --inplace", file=sys.stderr)
    sys.exit(2)

from benchmarks import works  # noqa: E402
from benchmarks.experiences import examples, fill, make_experience, seconds_per_example  # noqa: E402
from run import provenance, settings  # noqa: E402
from run.alignment import Alignment  # noqa: E402
from run.evaluation import Evaluator, n_scored  # noqa: E402
from sweep.commands import experiments  # noqa: E402
from tasks.files import load_tasks  # noqa: E402

ENGINES = ("native", "reference")
ROTATIONS = "mnist_rotations.pt"
MANY = "mnist_manypermutations.pt"
BEFORE = "2bfddd2"  # the last commit before the kernels were written anew for the same bits on every machine
SPLIT = "mnist_split.pt"


def filled(tasks, flags):
    """engine -> an Experience of these flags, its memory being full."""

    def make(engine):
        experience = make_experience(tasks, flags, engine)
        fill(experience)
        return experience

    return make


def paired(make, measure):
    """{engine: measure(make(engine))}, best of two rounds in which the engines take turns."""
    made = {engine: make(engine) for engine in ENGINES}
    rounds = [{engine: measure(made[engine]) for engine in ENGINES} for _ in range(2)]
    return {engine: min(one[engine] for one in rounds) for engine in ENGINES}


def seconds_of_evaluation(experience):
    """Of all accuracies once, with the threads of the experience."""
    begin = time.perf_counter()
    experience.evaluator.evaluate(experience.learner).accuracies()
    return time.perf_counter() - begin


class Table:
    """Rows of (what, unit, native, another), printed as they come; the other is the reference engine or as it says."""

    def __init__(self, before):
        self.rows, self.before = [], before  # the commit to measure against
        print(f"{'':58} {'native':>12} {'reference':>12}  ratio")

    def add(self, what, unit, native, other=None, note="", against="reference"):
        ratio = None if other is None else other / native
        row = {"what": what, "unit": unit, "native": native, against: other, "ratio": ratio, "note": note}
        self.rows.append(row)
        shown = [f"{value:12.4g}" if value is not None else f"{'':12}" for value in (native, other)]
        said = ", ".join(part for part in (f"against {against}" if against != "reference" else "", note) if part)
        print(f"{f'{what} [{unit}]':58} {shown[0]} {shown[1]}  {f'{ratio:.2f}x' if ratio else ''} {said}", flush=True)


def git(*words):
    """What git says of this checkout. CannotMeasure where it refuses, or is none."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        raise works.CannotMeasure(f"git cannot be run ({error}); give --against a folder") from error
    if done.returncode:
        raise works.CannotMeasure(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def check(commit):
    """CannotMeasure unless there is that commit, or a checkout in the folder of that name."""
    if Path(commit).is_dir():
        if not (Path(commit) / "benchmarks" / "bench.py").is_file():
            raise works.CannotMeasure(f"--against {commit}: that folder is no checkout of this program")
        return
    try:
        git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    except works.CannotMeasure as error:
        raise works.CannotMeasure(f"--against {commit}: no such commit or folder ({error})") from error


@contextlib.contextmanager
def checkout(commit):
    """A folder with that commit and its kernels built; a folder that is one already is taken as it is."""
    if Path(commit).is_dir():
        yield Path(commit).resolve()
        return
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "before"
        git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=folder, check=True)
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


@contextlib.contextmanager
def both(before):
    """A worker of this checkout, and one of that commit's."""
    data = ROOT / "data"
    with checkout(before) as folder, works.Worker(ROOT, data) as now, works.Worker(folder, data) as then:
        yield now, then


def bench_kernels(table):
    """Pieces of work; the checkouts take turns, each has the best of its rounds."""
    with both(table.before) as workers:
        for what in works.WORKS:
            rounds = [[worker.ask(what) for worker in workers] for _ in range(5)]
            now, then = (1e6 * min(times) for times in zip(*rounds, strict=True))
            table.add(what, "us", now, then, against=table.before)


def bench_suite(table):
    """The core-seconds of one seed of mer_examples.sh, estimated run by run from an example and an evaluation."""
    times = {}
    words = {True: "yes", False: "no"}
    with both(table.before) as workers:
        for experiment in experiments():
            flags = " ".join(
                f"--{name} {words.get(value, value) if isinstance(value, bool) else value}"
                for name, value in experiment.items()
            )
            rounds = [[worker.ask("run", flags) for worker in workers] for _ in range(2)]
            times[flags] = np.min(rounds, axis=0)  # (now, then) x (learning, evaluation)
    parts = np.sum(list(times.values()), axis=0)
    for what, (now, then) in {"learning": parts[:, 0], "evaluation": parts[:, 1], "all": parts.sum(1)}.items():
        table.add(f"{len(times)} runs of mer_examples.sh: {what}", "core s", now, then, "estimated", table.before)
    model_of = {flags: flags.split("--model ")[1].split()[0] for flags in times}
    for model in sorted(set(model_of.values())):
        now, then = sum(times[flags].sum(1) for flags in times if model_of[flags] == model)
        table.add(f"of these {model}", "core s", now, then, "estimated", table.before)


def bench_peers(table):
    """Pieces of work in PyTorch; they take turns, each has the best of its rounds."""
    with works.Worker(ROOT, ROOT / "data") as ours, works.Worker(ROOT, ROOT / "data") as theirs:
        for what, peers in works.PEERS.items():
            for peer in peers:
                rounds = [(ours.ask(what), theirs.ask(what, peer)) for _ in range(3)]
                now, then = (1e6 * min(times) for times in zip(*rounds, strict=True))
                table.add(what, "us", now, then, against=peer)


def bench_hits(table, wanted=10_000_000):
    """Hits in fixed point that are not the float kernel's, until so many (image, net) pairs were computed so.

    Nets are fresh, learn task after task, or diverge. An image's label is what PyTorch answers, so that any other
    answer is a hit less.
    """
    tasks = [task for name in (ROTATIONS, works.PERMUTATIONS) for task in load_tasks(str(ROOT / "data"), name).tasks]
    n = differ = left = nets = 0
    kept = {}  # {id of images: (compiled, as inputs)}
    while n - left < wanted:
        rng = np.random.default_rng(nets)
        layers = [(W * np.float32(rng.uniform(0.5, 2)), b) for W, b in works.weights((100, 100, 64, 37)[nets // 4 % 4])]
        net = _compiled.MLP(layers[:1], layers[1:], (0.003, 0.01, 0.03, 3.0)[nets % 4])
        held = _compiled.Examples(500, 784)
        nets += 1
        for t in rng.integers(len(tasks), size=8):
            test, train = tasks[t].test, tasks[t].train
            if id(test.images) not in kept:
                kept[id(test.images)] = (
                    _compiled.TestImages(test.images),
                    torch.from_numpy(test.images / np.float32(255)),
                )
            images, x = kept[id(test.images)]
            ((W, b),), above = net.weights()
            seen = test.pixel_map >= 0
            mapped = torch.zeros(x.shape[1], len(b)).index_add(
                0, torch.from_numpy(test.pixel_map[seen]), torch.from_numpy(W.T[seen])
            )
            h = x @ mapped + torch.from_numpy(b)
            for W, b in above:
                h = h.relu() @ torch.from_numpy(W).T + torch.from_numpy(b)
            of_task = 0, test.pixel_map, h.argmax(1).numpy(), 0, len(x)
            hits, computed = images.count(net, *of_task)
            differ += abs(hits - images.correct(net, *of_task, False))
            n, left = n + len(x), left + computed
            index = rng.integers(len(train), size=500)
            held.put_many(0, np.ascontiguousarray(train.inputs(index).numpy()), 0, train.labels[index].tolist())
            net.sgd_each(held, list(range(500)))
        if left == n:
            print("evaluation: these kernels count in float alone")
            return
    note = f"{differ} hits more or less than in float; {left / n:.1%} were left to float; {nets} nets in 8 stages each"
    table.add("evaluation: pairs of an image and a net", "pairs", n, note=note)


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

        def measure(experience):
            return seconds_per_example(experience, len(tasks.tasks) - 1)

        times = {engine: 1e6 * value for engine, value in paired(filled(tasks, flags), measure).items()}
        read = {flag.name for flag in args.learner.flags}
        shown = ("memories", "replay_batch_size", "batches_per_example")
        name = " ".join([args.model, *(str(getattr(args, flag)) for flag in shown if flag in read)])
        table.add(f"{name}: example", "us", times["native"], times["reference"])
        n = steps_per_example(args)
        if n > 1:
            table.add(f"{name}: SGD step of {n}", "us", times["native"] / n, times["reference"] / n)


def bench_successors(table):
    """An example of the learners that came after MER, on Rotations, the memory being full; ER beside them."""
    tasks = load_tasks(str(ROOT / "data"), ROTATIONS)
    for name in ("eralg4", "agem", "der", "derpp", "mir", "er_ace", "lamaml", "clser", "gss"):
        flags = f"--model {name} --lr 0.03 --memories 200 --replay_batch_size 10 --samples_per_task 1000"

        def make(engine, flags=flags):
            experience = filled(tasks, flags)(engine)
            for x, t, y in examples(experience, 0, 2):  # er_ace does less in its first task
                experience.learner.observe(x, t, y)
            return experience

        def measure(experience):
            return seconds_per_example(experience, len(tasks.tasks) - 1)

        times = paired(make, measure)
        table.add(f"{name} 200 10: example", "us", *(1e6 * times[engine] for engine in ENGINES))


def bench_evaluation(table):
    """Time on one core of a test image, and of a whole evaluation's accuracies and alignment."""
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
        if name == ROTATIONS:
            n_tasks = len(tasks.tasks)

            def aligned(experience, tasks=tasks):
                alignment = Alignment(experience.learner, dict(enumerate(tasks.tasks)), 10)
                begin = time.perf_counter()
                alignment.measure(range(len(tasks.tasks)))
                return time.perf_counter() - begin

            table.add(f"{name}: evaluation of {n_tasks} tasks", "ms", *(1e3 * times[engine] for engine in ENGINES))
            times = paired(make, aligned)
            table.add(f"{name}: --alignment 10 of {n_tasks} tasks", "ms", *(1e3 * times[engine] for engine in ENGINES))


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
    evaluation = seconds_of_evaluation(experience)
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

            def learn(experience):
                return seconds_per_example(experience, len(tasks.tasks) - 1)

            times = paired(filled(tasks, flags), learn)
            table.add(f"split, {scenario}: {name}: example", "us", *(1e6 * times[engine] for engine in ENGINES))
        times = paired(filled(tasks, flags), seconds_of_evaluation)
        table.add(f"split, {scenario}: test image", "us", *(1e6 * times[engine] / n_images for engine in ENGINES))


def bench_cuda(table):
    """A minibatch of some learners, and an evaluation: the native engine on a core, the reference engine on a GPU."""
    if not torch.cuda.is_available():
        print("cuda: PyTorch finds no CUDA device here")
        return
    gpu = f"reference on {torch.cuda.get_device_name()}"
    tasks = load_tasks(str(ROOT / "data"), ROTATIONS)
    lines = {
        "online": "--model online",
        "eralg4 200 10": "--model eralg4 --memories 200 --replay_batch_size 10",
        "meralg1 200 10 5": "--model meralg1 --memories 200 --replay_batch_size 10 --batches_per_example 5",
        "derpp 200 10": "--model derpp --memories 200 --replay_batch_size 10",
        "online, batch 100": "--model online --batch_size 100",
        "online, batch 100, 1000 units": "--model online --batch_size 100 --n_hiddens 1000",
        "online, batch 100, 4000 units": "--model online --batch_size 100 --n_hiddens 4000",
    }

    def learn(experience):
        return experience.stream.batch_size * seconds_per_example(experience, 0)

    for name, line in lines.items():

        def make(engine, line=line):
            device = "--cuda yes" if engine == "reference" else ""
            experience = filled(tasks, f"{line} --lr 0.003 --samples_per_task 1000 {device}")(engine)
            learn(experience)  # a GPU's libraries take their time at first
            return experience

        times = paired(make, learn)
        table.add(f"{name}: minibatch", "us", *(1e6 * times[engine] for engine in ENGINES), against=gpu)
        if name == "online":
            times = paired(make, seconds_of_evaluation)
            what = f"{ROTATIONS}: evaluation of {len(tasks.tasks)} tasks"
            table.add(what, "ms", *(1e3 * times[engine] for engine in ENGINES), against=gpu)


PARTS = {"kernels": bench_kernels, "suite": bench_suite, "peers": bench_peers, "hits": bench_hits}
PARTS |= {"steps": bench_steps, "successors": bench_successors, "evaluation": bench_evaluation, "tasks": bench_tasks}
PARTS |= {"split": bench_split, "runs": bench_runs, "cuda": bench_cuda}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"parts to measure: {', '.join(PARTS)}; all if none is named")
    parser.add_argument(
        "--against", default=BEFORE, help="commit that kernels and suite are compared with (%(default)s)"
    )
    args = parser.parse_args()
    chosen = args.part or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    try:
        if not {"kernels", "suite"}.isdisjoint(chosen):
            check(args.against)  # before the others take their time
        table = Table(args.against)
        for part in chosen:
            PARTS[part](table)
    except works.CannotMeasure as error:
        parser.exit(2, f"error: {error}\n")
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
