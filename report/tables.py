"""Experiments: runs that differ in nothing but their seed. Their means, comparisons and gaps."""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from disk.names import readable, without_ending
from metrics import NAMES
from model.flags import SAME_SIZE
from report.read import NO_MATTER, ORIGINAL, TEXT, THIS, plain

# The paper's order: first what remembers nothing, then regularisation, then replay. Then what came after, as in README.
PAPER = ("online", "independent", "taskinput", "ewc", "gem", "eralg4", "eralg5", "meralg1", "meralg6", "meralg7")
AFTER = ("agem", "der", "derpp", "mir", "er_ace", "lamaml", "clser", "gss", "mer_minibatch", "joint")
ORDER = PAPER + AFTER
FEWEST_SEEDS = 3
LEVEL = 0.05
UNKNOWN_DATA = "†"  # marks runs whose data are known by the file's name alone
ALIGNMENT = ("cosine_between", "cosine_within", "inner_between", "inner_within")
VALUES = (*NAMES, "before", "after", "seconds", *ALIGNMENT)  # of a run; those after NAMES may be unknown


@dataclass(frozen=True, eq=False)
class Experiment:
    """Runs of one learner that differ in nothing but their seed, in order of seed.

    data      name of the tasks: their file's, with a part of their identity where others have this name
    label     the learner, with what it had learned before, who ran it if not this program, and UNKNOWN_DATA
    memory    how many examples it remembers (None: none, or unknown)
    settings  {flag: text} of all that makes it this experiment; None where no flags are known
    differs   the settings that tell it from others of the same label, memory and data, as text
    """

    data: str
    label: str
    model: str
    memory: int | None
    settings: dict | None
    differs: str
    runs: tuple

    @cached_property
    def values(self):
        """{one of VALUES: (seeds,) of the runs where it is known}"""
        found = {name: [getattr(run, name) for run in self.runs] for name in VALUES}
        return {name: np.array([value for value in known if value is not None]) for name, known in found.items()}

    def mean(self, name):
        return float(self.values[name].mean()) if len(self.values[name]) else None

    def std(self, name):
        """Sample standard deviation (n - 1); None for fewer than two seeds."""
        return float(self.values[name].std(ddof=1)) if len(self.values[name]) > 1 else None

    @cached_property
    def seeds(self):
        return [run.seed for run in self.runs]

    @property
    def memory_text(self):
        return "?" if self.settings is None else "–" if self.memory is None else str(self.memory)

    @property
    def kind(self):
        """The learner with its distinguishing settings."""
        return f"{self.label} {self.differs}".strip()


@dataclass(frozen=True)
class Comparison:
    """A t-test of two learners by one metric; difference is a's less b's, with its 95% interval.

    memory    the size that they share, or None: see `tables_of`
    test      "paired" by seed, or "Welch"; n: how many pairs, or seeds of a and of b, as text
    p_holm    corrected for the tests of this metric in this table
    p, p_holm, low and high are None where there is no test; verdict then says why.
    """

    data: str
    memory: int | None
    metric: str
    a: Experiment
    b: Experiment
    test: str
    n: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    verdict: str

    @property
    def differs(self):
        return self.p_holm is not None and self.p_holm < LEVEL


def experiments(runs):
    """([Experiment], [(older Run, newer Run)]): runs by exact settings; of one experiment and seed the newest counts.

    Tasks are the same where their identity is, whatever their file is called. Runs with the same history are alike,
    whatever its seeds. A run without flags (only a .txt is left) stands alone.
    """
    names = _data_names(runs)

    def key(run):
        before = tuple((it["model"], it["data"]) for it in run.history)
        exact = run.path if run.science is None else tuple(sorted(run.science.items()))
        return run.program, run.model, names[_data(run)], run.identity, before, exact

    newest, all_of_seed = {}, defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.finished, run.path)):
        all_of_seed[key(run), run.seed].append(run)
        newest[key(run), run.seed] = run
    superseded = [(old, alike[-1]) for alike in all_of_seed.values() for old in alike[:-1]]
    groups, rows = defaultdict(list), defaultdict(list)
    for (group, _), run in newest.items():
        groups[group].append(run)
    for group in groups.values():
        group.sort(key=lambda run: (run.seed is None, run.seed))
        run = group[0]
        rows[names[_data(run)], _label(run, names), run.memory].append(group)
    found = []
    for (data, label, memory), alike in rows.items():
        for group, differs in zip(alike, _differences([group[0] for group in alike]), strict=True):
            run = group[0]
            found.append(Experiment(data, label, run.model, memory, run.science, differs, tuple(group)))
    return sorted(found, key=order), superseded


def order(it):
    """What experiments are sorted by: data, those with fewest tasks first; learner in ORDER; memory; settings."""
    rank = ORDER.index(it.model) if it.model in ORDER else len(ORDER)
    return it.runs[0].n_tasks, it.data, rank, it.model, it.label, it.memory or 0, it.differs


def data_sets(found):
    """Names of the data sets, the ones with fewest tasks first."""
    return list(dict.fromkeys(it.data for it in sorted(found, key=order)))


def _data(run):
    """What tells a run's tasks from others: their identity, or else their file's name."""
    return run.identity or without_ending(run.data_file)


def _data_names(runs):
    """{_data(run): name}: the tasks' usual file name, with a part of the identity where others have it too.

    Runs whose data are unknown are taken to have learned the only tasks of that name, if only one is known.
    """
    files = defaultdict(Counter)
    for run in runs:
        if run.identity:
            files[run.identity][without_ending(run.data_file)] += 1
    usual = {identity: min(seen, key=lambda file: (-seen[file], file)) for identity, seen in files.items()}
    shared = Counter(usual.values())
    names = {identity: f"{file} [{identity[:8]}]" if shared[file] > 1 else file for identity, file in usual.items()}
    for file in {without_ending(run.data_file) for run in runs if not run.identity}:
        known = [names[identity] for identity, seen in files.items() if file in seen]
        names[file] = known[0] if len(known) == 1 else f"{file} [unknown]" if known else file
    return names


def _label(run, names):
    text = run.model
    if run.history:
        before = [names.get(it["data"], without_ending(it["data_file"])) for it in run.history]
        others = [f" by {it['model']}" if it["model"] != run.model else "" for it in run.history]
        text += f" after {', '.join(map(str.__add__, before, others))}"
    text += {THIS: "", ORIGINAL: " (original)", TEXT: " (text only)"}[run.program]
    return text + ("" if run.identity else f" {UNKNOWN_DATA}")


def _differences(runs):
    """For each of these runs (of one label, memory and data) the settings that the others do not share, as text."""
    known = [run.science for run in runs if run.science is not None]
    flags = sorted({flag for it in known for flag in it if len({other.get(flag) for other in known}) > 1})
    return [
        f"unknown, run …{run.name[-8:]}"
        if run.science is None
        else " ".join(f"{flag} {run.science[flag]}" for flag in flags if flag in run.science)
        for run in runs
    ]


# -- comparisons


def shelves(experiments):
    """{memory: size} of one data set: one size for memories so close that the paper's tables call them the same."""
    shelf, largest = {}, None
    for size in sorted({it.memory for it in experiments if it.memory is not None}, reverse=True):
        if largest is None or size < largest * (1 - SAME_SIZE):
            largest = size
        shelf[size] = largest
    return shelf


def tables_of(experiments):
    """[(size, [Experiment])] of one data set: for each memory size the learners of that size, and all without one.

    A learner without a memory to size stands in every table. [(None, all)] where none has one.
    """
    shelf = shelves(experiments)
    return [
        (size, [it for it in experiments if it.memory is None or shelf[it.memory] == size])
        for size in sorted(set(shelf.values())) or [None]
    ]


def comparisons(found, metrics=("RA", "BTI")):
    """Every two learners in each table of a data set: t-tests, with Holm's correction.

    Those without a memory to size are compared with one another in a table of their own (None), and with the others in
    each table. By pairs of runs of the same seed, which share their stream and first weights, where there are enough of
    them; else Welch's test (Biometrika 34, 1947; Satterthwaite's degrees of freedom). The family of Holm's correction
    (Scandinavian Journal of Statistics 6, 1979) is the tests of one metric in one table. Below FEWEST_SEEDS there is no
    test and no claim.
    """
    results = []
    for data in data_sets(found):
        here = [it for it in found if it.data == data and it.settings is not None]  # else its memory is unknown
        fixed = [it for it in here if it.memory is None]
        tables = [(size, members) for size, members in tables_of(here) if size is not None]
        for size, members in [(None, fixed), *tables]:
            pairs = [
                (a, b)
                for a, b in combinations(members, 2)
                if a.label != b.label and (size is None or a.memory or b.memory)
            ]
            for metric in metrics:
                tests = [_test(a, b, metric) for a, b in pairs]
                corrected = holm([test["p"] for test in tests])
                for (a, b), test, p_holm in zip(pairs, tests, corrected, strict=True):
                    if p_holm is not None:
                        higher = a if test["difference"] > 0 else b
                        test["verdict"] = f"{higher.kind} higher" if p_holm < LEVEL else "no difference shown"
                    results.append(Comparison(data, size, metric, a, b, p_holm=p_holm, **test))
    return results


def _test(a, b, metric):
    """The fields of a Comparison that one pair of experiments gives."""
    mine, others = ({run.seed: getattr(run, metric) for run in it.runs} for it in (a, b))
    shared = sorted(mine.keys() & others.keys())
    paired = len(shared) >= FEWEST_SEEDS
    if paired:
        mine, others = ({seed: values[seed] for seed in shared} for values in (mine, others))
    x, y = (np.array(list(values.values())) for values in (mine, others))
    samples = [x - y] if paired else [x, y]
    found = {
        "test": "paired" if paired else "Welch",
        "n": ", ".join(str(len(sample)) for sample in samples),
        "difference": float(x.mean() - y.mean()),
    }
    untested = dict.fromkeys(("low", "high", "p"))
    if min(map(len, samples)) < FEWEST_SEEDS:
        return found | untested | {"verdict": "too few seeds"}
    variances = np.array([sample.var(ddof=1) / len(sample) for sample in samples])  # of the means
    if not any(np.ptp(sample) for sample in samples):
        return found | untested | {"verdict": "no spread to test by"}
    from scipy.special import stdtr, stdtrit  # Student's distribution and its inverse; slow to import

    error = math.sqrt(variances.sum())
    freedom = variances.sum() ** 2 / sum(variances**2 / [len(sample) - 1 for sample in samples])
    p, wide = 2 * stdtr(freedom, -abs(found["difference"]) / error), error * stdtrit(freedom, 0.975)
    return found | {"low": found["difference"] - wide, "high": found["difference"] + wide, "p": float(p), "verdict": ""}


def holm(values):
    """Holm's step-down p-values: the i-th smallest of m times m - i, never falling, at most 1. None stays None."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected, largest = [None] * len(values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def missing(expected, found):
    """[sentence] of each of the experiments `expected` without runs, and of those with fewer seeds than others.

    expected  dictionaries of flags; one matches an experiment that agrees in each of them, but for those on which no
              distribution depends
    found     [Experiment]
    An experiment lacks the seeds that any other of the same program has. Where no flags are known nothing is missed.
    """
    found = [it for it in found if it.settings is not None]
    told = [{flag: plain(value) for flag, value in flags.items() if flag not in NO_MATTER} for flags in expected]
    usual = set.intersection(*(set(it.items()) for it in told)) if len(told) > 1 else set()
    said, wanted = [], defaultdict(set)
    for flags, science in zip(expected, told, strict=True):
        if not any(_agrees(flags, science, it) for it in found):
            own = [f"{flag} {text}" for flag, text in science.items() if (flag, text) not in usual]
            said.append(
                f"{without_ending(flags.get('data_file', ''))}: {' '.join([flags.get('model', ''), *own])} has no runs."
            )
    for it in found:
        wanted[it.runs[0].program] |= set(it.seeds)
    for it in found:
        lacking = sorted(wanted[it.runs[0].program] - set(it.seeds))
        if lacking:
            memory = f", {it.memory} memories" if it.memory else ""
            said.append(f"{it.data}: {it.kind}{memory} has seeds {span(it.seeds)}, lacks {span(lacking)}.")
    return said


def _agrees(flags, science, it):
    model, file = flags.get("model", it.model), flags.get("data_file", it.runs[0].data_file)
    # a flag that the run does not have is none that its learner reads
    agrees = all(it.settings.get(flag, text) == text for flag, text in science.items())
    return agrees and model == it.model and file in {run.data_file for run in it.runs}


# -- as text


def span(numbers):
    """0 1 2 3 7 -> "0–3, 7"."""
    parts, numbers = [], list(numbers)
    while numbers:
        last = 0
        while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
            last += 1
        parts.append(str(numbers[0]) if last == 0 else f"{numbers[0]}{'–' if last > 1 else ', '}{numbers[last]}")
        numbers = numbers[last + 1 :]
    return ", ".join(parts)


def percent(it, name):
    """ "89.56 ± 0.11": mean and sample standard deviation in percent; the mean alone for one seed; – where unknown."""
    mean, std = it.mean(name), it.std(name)
    return "–" if mean is None else f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def markdown(text):
    """Text that means nothing else to Markdown, on one line."""
    text = re.sub(r"([\\`*\[\]<>|#~$&]|\b_|_\b)", r"\\\1", readable(str(text)))
    return re.sub(r"^(?=[+-] )", r"\\", text)


def duration(it):
    """ "12.3 ± 0.4" seconds, or "–" where unknown."""
    mean, std = it.mean("seconds"), it.std("seconds")
    if mean is None:
        return "–"
    digits = 0 if mean >= 100 else 1
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def as_csv(found):
    """One line per experiment, accuracies as fractions, for other programs.

    before, after: mean accuracy on the tasks that were learned before, where they were evaluated. cosine_, inner_: for
    the loss gradients of examples of different tasks (between) and of one (within), means at the end, where compared.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{name}_{part}" for name in VALUES for part in ("mean", "std")]
    writer.writerow(["data", "identity", "learner", "memory", *columns, "n_seeds", "seeds", "settings"])
    for it in found:
        numbers = [part(name) for name in VALUES for part in (it.mean, it.std)]
        cells = ["" if value is None else f"{value:.6g}" for value in numbers]
        settings = "unknown" if it.settings is None else " ".join(f"--{k} {v}" for k, v in it.settings.items())
        seeds = " ".join("?" if seed is None else str(seed) for seed in it.seeds)
        identity = it.runs[0].identity or "unknown"
        memory = "" if it.memory is None else it.memory
        writer.writerow([it.data, identity, it.label, memory, *cells, len(it.runs), seeds, settings])
    return text.getvalue()


def counts(values):
    """[(text, how often)], the most frequent first; None counts as "unknown"."""
    return Counter("unknown" if value is None else str(value) for value in values).most_common()
