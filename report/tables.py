"""Experiments: runs that differ in nothing but their seed. Their means, comparisons and gaps."""

import csv
import io
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from report.read import METRICS, ORIGINAL, TEXT, THIS

# What a run may differ in and still be one more seed of the same experiment. Which data were learned is judged by their
# identity, not by where they lay.
NOT_SCIENCE = frozenset(
    "seed save_path data_path data_file data_seed log_every cuda engine draws threads progress checkpoint_every resume "
    "keep_state with_tasks_of tensorboard".split()
)
# The paper's order: first what remembers nothing, then regularisation, then replay.
ORDER = ("online", "independent", "taskinput", "ewc", "gem", "eralg4", "eralg5", "meralg1", "meralg6", "meralg7")
REPLAYS = ("er", "mer")  # learners whose names begin so keep one reservoir
SAME_SIZE = 0.02  # 51 memories for each of 100 tasks stand beside 5120
FEWEST_SEEDS = 3
LEVEL = 0.05


@dataclass(frozen=True)
class Experiment:
    """Runs of one learner that differ in nothing but their seed, in order of seed.

    data      the data file's name, with a part of its identity where several files have this name
    label     the learner, marked where the original program ran it or only a .txt is left
    memory    how many examples it remembers (None: none, or unknown)
    settings  {flag: text} of all that makes it this experiment; None where no flags are known
    differs   the settings that tell it from others of the same learner, memory and data, as text
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
        """{metric: (seeds,) values}; of "seconds" those that are known."""
        found = {metric: np.array([getattr(run, metric) for run in self.runs]) for metric in METRICS}
        return found | {"seconds": np.array([run.seconds for run in self.runs if run.seconds is not None])}

    def mean(self, metric):
        return float(self.values[metric].mean()) if len(self.values[metric]) else None

    def std(self, metric):
        """Sample standard deviation (n - 1); None for fewer than two seeds."""
        return float(self.values[metric].std(ddof=1)) if len(self.values[metric]) > 1 else None

    @property
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
    """Welch's t-test of two learners' means of one metric; difference is a's mean less b's, with its 95% interval.

    p, p_holm, low and high are None where there is no test; verdict then says why.
    """

    data: str
    memory: int | None
    metric: str
    a: Experiment
    b: Experiment
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    verdict: str

    @property
    def differs(self):
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Gap:
    """An experiment that lacks seeds. what: how to recognise it; found and lacking: seeds."""

    data: str
    what: str
    found: list
    lacking: list


def plain(value):
    """The text of a flag's value, the same for 20 and 20.0, and for True and yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def memory_size(model, args, n_tasks):
    """How many examples a learner may remember: its reservoir, or GEM's and EWC's memories of all tasks; None: none."""
    if model.startswith(REPLAYS):
        size = args.get("memories")
    elif model in ("gem", "ewc"):
        size = args.get("n_memories")
        size = size * n_tasks if isinstance(size, int) else None
    else:
        size = None
    return size if isinstance(size, int) else None


def experiments(runs):
    """([Experiment], [(older Run, newer Run)]): runs by exact settings; of one experiment and seed the newest counts.

    A run without flags (only a .txt is left) stands alone.
    """
    newest, superseded = {}, []
    for run in sorted(runs, key=lambda run: (run.finished, run.path)):
        key = (_key(run), run.seed)
        if key in newest:
            superseded.append((newest[key], run))
        newest[key] = run
    superseded = [(old, newest[_key(old), old.seed]) for old, _ in superseded]
    groups = defaultdict(list)
    for (key, _), run in newest.items():
        groups[key].append(run)

    names = _data_names(runs)
    rows = defaultdict(list)
    for group in groups.values():
        group.sort(key=lambda run: (run.seed is None, run.seed))
        run = group[0]
        memory = None if run.args is None else memory_size(run.model, run.args, run.n_tasks)
        label = run.model + {THIS: "", ORIGINAL: " (original)", TEXT: " (text only)"}[run.program]
        rows[names[run.data_file, run.identity], label, memory].append(group)
    found = []
    for (data, label, memory), alike in rows.items():
        for group, differs in zip(alike, _differences([group[0] for group in alike]), strict=True):
            run = group[0]
            found.append(Experiment(data, label, run.model, memory, _settings(run), differs, tuple(group)))
    return sorted(found, key=_order), superseded


def _order(it):
    rank = ORDER.index(it.model) if it.model in ORDER else len(ORDER)
    return it.runs[0].n_tasks, it.data, rank, it.model, it.label, it.memory or 0, it.differs


def data_sets(found):
    """Names of the data sets, the ones with fewest tasks first."""
    return list(dict.fromkeys(it.data for it in sorted(found, key=_order)))


def _settings(run):
    if run.args is None:
        return None
    ours = {flag: value for flag, value in run.args.items() if flag not in NOT_SCIENCE and flag != "model"}
    return {flag: plain(value) for flag, value in ours.items() if value is not None}


def _key(run):
    settings = _settings(run)
    exact = run.path if settings is None else tuple(sorted(settings.items()))
    return run.program, run.model, run.data_file, run.identity, exact


def _data_names(runs):
    """{(file, identity): name}: the file's name, with a part of the identity where it is not the only one."""
    identities = defaultdict(set)
    for run in runs:
        identities[run.data_file].add(run.identity)
    names = {}
    for file, found in identities.items():
        short = _short(file)
        for identity in found:
            alone = len(found - {None}) <= 1
            names[file, identity] = short if alone else f"{short} [{(identity or 'unknown')[:8]}]"
    return names


def _short(file):
    return file.removesuffix(".pt").removesuffix(".npz")


def _differences(runs):
    """For each of these runs (of one learner, memory and data) the settings that the others do not share, as text."""
    settings = [_settings(run) for run in runs]
    known = [it for it in settings if it is not None]
    flags = sorted({flag for it in known for flag in it if len({other.get(flag) for other in known}) > 1})
    texts = []
    for run, it in zip(runs, settings, strict=True):
        if it is None:
            texts.append(f"unknown, run …{run.name[-8:]}")
            continue
        text = " ".join(f"{flag} {it[flag]}" for flag in flags if flag in it)
        if len({other.identity for other in runs if other.args is not None}) > 1 and run.identity is None:
            text = f"{text} data unknown".strip()
        texts.append(text)
    return texts


def shelves(found):
    """{(data, memory): size} with one size for memories so close that the paper's tables call them the same."""
    sizes = defaultdict(set)
    for it in found:
        if it.memory is not None:
            sizes[it.data].add(it.memory)
    shelf = {}
    for data, all_sizes in sizes.items():
        largest = None
        for size in sorted(all_sizes, reverse=True):
            if largest is None or size < largest * (1 - SAME_SIZE):
                largest = size
            shelf[data, size] = largest
    return shelf


def comparisons(found, metrics=("RA", "BTI")):
    """Every two learners' means within one data set and memory size: Welch's t-test, with Holm's correction.

    Welch, Biometrika 34, 1947; Holm, Scandinavian Journal of Statistics 6, 1979. The family of Holm's correction is the
    tests of one metric within one data set and memory size. Below FEWEST_SEEDS seeds there is no test and no claim.
    """
    shelf = shelves(found)
    groups = defaultdict(list)
    for it in found:
        if it.settings is not None:  # else its memory is unknown
            groups[it.data, shelf.get((it.data, it.memory))].append(it)
    results = []
    for (data, memory), members in groups.items():
        for metric in metrics:
            pairs = [(a, b) for a, b in combinations(members, 2) if a.label != b.label]
            tests = [_welch(a.values[metric], b.values[metric]) for a, b in pairs]
            corrected = holm([p for p, *_ in tests])
            for (a, b), (p, low, high, verdict), p_holm in zip(pairs, tests, corrected, strict=True):
                difference = a.mean(metric) - b.mean(metric)
                if p_holm is not None:
                    higher = a if difference > 0 else b
                    verdict = f"{higher.kind} higher" if p_holm < LEVEL else "no difference shown"
                results.append(Comparison(data, memory, metric, a, b, difference, low, high, p, p_holm, verdict))
    return results


def _welch(a, b):
    """(p, low, high, why not) of two samples."""
    if min(len(a), len(b)) < FEWEST_SEEDS:
        return None, None, None, "too few seeds"
    if np.ptp(a) == np.ptp(b) == 0:
        return None, None, None, "no spread to test by"
    from scipy import stats  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values lose precision, to no harm here
        test = stats.ttest_ind(a, b, equal_var=False)
        interval = test.confidence_interval(0.95)
    return float(test.pvalue), float(interval.low), float(interval.high), ""


def holm(values):
    """Holm's step-down p-values: the i-th smallest of m times m - i, never falling, at most 1. None stays None."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected, largest = [None] * len(values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def missing(expected, found):
    """[Gap]: experiments of the list `expected` without runs, and those with fewer seeds than others.

    expected  dictionaries (or Namespaces) of flags, as values or text; one matches an experiment that agrees in each
              of them, but for the seed and what else changes no number
    found     [Experiment]
    An experiment lacks the seeds that any other of the same program has. Where no flags are known nothing is missed.
    """
    found = [it for it in found if it.settings is not None]
    wanted = defaultdict(set)
    for it in found:
        wanted[it.runs[0].program] |= set(it.seeds)
    expected = [flags if isinstance(flags, dict) else vars(flags) for flags in expected]
    usual = set.intersection(*(set(_told(flags).items()) for flags in expected)) if len(expected) > 1 else set()
    gaps = []
    for flags in expected:
        if not any(_agrees(flags, it) for it in found):
            own = [f"{flag} {text}" for flag, text in _told(flags).items() if (flag, text) not in usual]
            what = " ".join([flags.get("model", ""), *own])
            gaps.append(Gap(_short(flags.get("data_file", "")), what, [], sorted(set().union(*wanted.values()))))
    for it in found:
        lacking = sorted(wanted[it.runs[0].program] - set(it.seeds))
        if lacking:
            memory = f", {it.memory} memories" if it.memory else ""
            gaps.append(Gap(it.data, it.kind + memory, it.seeds, lacking))
    return gaps


def _told(flags):
    """{flag: text} of what tells experiments apart."""
    return {flag: _like(value) for flag, value in flags.items() if flag not in NOT_SCIENCE and flag != "model"}


def _agrees(flags, it):
    run = it.runs[0]
    if flags.get("model", run.model) != run.model or flags.get("data_file", run.data_file) != run.data_file:
        return False
    # a flag that the run does not have is none that its learner reads
    return all(it.settings.get(flag, text) == text for flag, text in _told(flags).items())


def _like(value):
    """plain() of a value that may still be a command line's text: "1e-3" is 0.001."""
    if isinstance(value, str):
        try:
            return plain(float(value))
        except ValueError:
            pass
    return plain(value)


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


def percent(it, metric):
    """ "89.56 ± 0.11": mean and sample standard deviation in percent; the mean alone for one seed."""
    std = it.std(metric)
    return f"{100 * it.mean(metric):.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def duration(it):
    """ "12.3 ± 0.4" seconds, or "–" where unknown."""
    mean, std = it.mean("seconds"), it.std("seconds")
    if mean is None:
        return "–"
    digits = 0 if mean >= 100 else 1
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def as_csv(found):
    """One line per experiment, accuracies as fractions, for other programs."""
    columns = [f"{metric}_{part}" for metric in (*METRICS, "seconds") for part in ("mean", "std")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "learner", "memory", *columns, "n_seeds", "seeds", "settings"])
    for it in found:
        numbers = [part(metric) for metric in (*METRICS, "seconds") for part in (it.mean, it.std)]
        cells = ["" if value is None else f"{value:.6g}" for value in numbers]
        settings = "unknown" if it.settings is None else " ".join(f"--{k} {v}" for k, v in it.settings.items())
        seeds = " ".join("?" if seed is None else str(seed) for seed in it.seeds)
        memory = "" if it.memory is None else it.memory
        writer.writerow([it.data, it.label, memory, *cells, len(it.runs), seeds, settings])
    return text.getvalue()


def counts(values):
    """[(text, how often)], the most frequent first; None counts as "unknown"."""
    return Counter("unknown" if value is None else str(value) for value in values).most_common()
