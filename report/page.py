"""What is handed out: report.md, report.csv, report.html and the figures' files."""

import base64
import shlex
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from disk.atomic import writing
from disk.names import readable
from errors import UserError
from metrics import NAMES
from report import figures, tables
from report.read import Run, date
from run.flags import words_of

MOST_LISTED = 200  # skipped files named one by one

DEFINITIONS = {
    "RA": "retained accuracy: the mean accuracy on all tasks after the last one has been learned",
    "LA": "learning accuracy: the mean of each task's accuracy right after it was learned",
    "BTI": "backward transfer and interference: the mean of each task's final accuracy less that right after it was "
    "learned; below zero is forgetting",
    "FWT": "forward transfer: the mean of each task's accuracy right before it is learned less that before the first "
    "task",
    "AAA": "average anytime accuracy: the mean, over all evaluations, of the mean accuracy on the tasks seen so far",
    "forgetting": "the mean, over all tasks but the last, of a task's best accuracy after any task less its final one",
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, what it is sorted by (its text), the label of the learner whose colour it has."""

    text: object
    key: object = None
    label: str | None = None


@dataclass(frozen=True)
class Table:
    """A heading, the columns' names (those of numbers end in #), and rows of cells, of which texts are some."""

    title: str
    columns: list
    rows: list

    def cells(self):
        for row in self.rows:
            yield [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]


@dataclass(frozen=True)
class Report:
    """All that the report says; the pages only put it into words.

    found        [Experiment] that count, of the runs
    superseded   [(older Run, the newer Run of the same experiment and seed)], which do not count
    skipped      [Skipped]
    expected     dictionaries of flags: the experiments that there should be (see tables.missing); None: no such list
    shown        the Run of the heat map
    """

    folder: str
    found: list
    superseded: list
    skipped: list
    expected: list | None
    shown: Run

    @cached_property
    def runs(self):
        return [run for it in self.found for run in it.runs]

    @cached_property
    def data_sets(self):
        return tables.data_sets(self.found)

    @cached_property
    def comparisons(self):
        return tables.comparisons(self.found)

    @cached_property
    def gaps(self):
        return tables.missing(self.expected or [], self.found)

    def rows(self, data):
        return [it for it in self.found if it.data == data]

    def about_data(self, data):
        """One line for each kind of run of this data set: how many tasks, from where, and which numbers exactly."""
        lines = defaultdict(int)
        for it in self.rows(data):
            for run in it.runs:
                origin = run.about["origin"] or "origin not recorded"
                identity = f"sha256 {run.identity[:16]}…" if run.identity else "identity not recorded"
                lines[f"{run.data_file}: {run.n_tasks} tasks; {origin}; {identity}"] += 1
        return sorted(lines.items())

    def provenance(self):
        """[(what, [(value, number of runs)])]: where the counted runs come from."""
        changed = {True: " with local changes", False: ""}
        commits = [run.about["commit"] and run.about["commit"][:12] + changed[run.about["dirty"]] for run in self.runs]
        codes = [run.about["code"] and f"{run.model} {run.about['code'][:12]}" for run in self.runs]
        found = {"Program": [run.program for run in self.runs], "Commit": commits, "Sources (sha256)": codes}
        for key in ("versions", "host", "engine", "draws", "threads"):
            found[key.capitalize()] = [run.about[key] for run in self.runs]
        found |= {"Data (sha256)": [run.identity for run in self.runs], "Seeds": [run.seed for run in self.runs]}
        return [(what, tables.counts(values)) for what, values in found.items()]

    def dates(self):
        days = sorted({date(run.finished)[:10] for run in self.runs}) or ["never"]
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    def notes(self):
        """[(learner, note, sum over its runs)] of what the learners reported."""
        sums = defaultdict(int)
        for it in self.found:
            for run in it.runs:
                for name, value in run.about["notes"].items():
                    sums[it.label, name] += value
        return [(*key, f"{value:g}") for key, value in sorted(sums.items())]

    # -- tables

    def results(self, data):
        """Table of the experiments on a data set."""
        rows = self.rows(data)
        differ = any(it.differs for it in rows)
        return Table(
            f"Results on {data}",
            ["Learner", "Memory#", *["Settings"] * differ, *(f"{it}#" for it in NAMES), "Seeds#", "Seconds#"],
            [
                [Cell(it.label, place, it.label), _memory(it), *[it.differs] * differ]
                + [Cell(minus(tables.percent(it, name)), it.mean(name)) for name in NAMES]
                + [len(it.runs), Cell(tables.duration(it), it.mean("seconds") or 0)]
                for place, it in enumerate(rows)
            ],
        )

    def earlier(self, data):
        """Table of what became of the tasks that learners had learned before those of a data set; empty for none."""
        rows = []
        for it in self.rows(data):
            if len(it.values["before"]):
                told = [Cell(minus(tables.percent(it, name)), it.mean(name)) for name in ("before", "after")]
                change = it.mean("after") - it.mean("before")
                told += [Cell(signed(change), change), len(it.values["before"])]
                rows.append([Cell(it.label, None, it.label), _memory(it), *told])
        columns = ["Learner", "Memory#", "Before#", "After#", "Change#", "Seeds#"]
        return Table(f"What became of the tasks learned before {data}", columns, rows)

    def aligned(self, data):
        """Table of how loss gradients lay to each other at the end of a data set; empty where none were compared."""
        rows = [
            [Cell(it.label, place, it.label), _memory(it), *(_number(it, name) for name in tables.ALIGNMENT)]
            + [len(it.values["cosine_within"])]
            for place, it in enumerate(self.rows(data))
            if any(len(it.values[name]) for name in tables.ALIGNMENT)
        ]
        columns = [
            f"{what} {where}#" for what in ("Cosine", "Inner product") for where in ("between tasks", "within one")
        ]
        return Table(f"Loss gradients after the last task of {data}", ["Learner", "Memory#", *columns, "Seeds#"], rows)

    def compared(self, data):
        """[Table] of the comparisons on a data set."""
        found = defaultdict(lambda: defaultdict(list))
        for it in self.comparisons:
            if it.data == data:
                found[it.memory][id(it.a), id(it.b)].append(it)
        return [self._compared(memory, list(pairs.values())) for memory, pairs in found.items()]

    def _compared(self, memory, pairs):
        def name(it):
            return Cell(it.kind if it.memory in (memory, None) else f"{it.kind} ({it.memory})", None, it.label)

        differ = [f"{it.metric} differs in {sum(pair[at].differs for pair in pairs)}" for at, it in enumerate(pairs[0])]
        size = f"{memory} memories" if memory else "Without a memory to size"
        columns = [f"{it.metric}{end}" for it in pairs[0] for end in (", a − b [95 %]#", " p#", " verdict")]
        return Table(
            f"{size}: {len(pairs)} pair{'s' * (len(pairs) > 1)}; {', '.join(differ)}",
            ["a", "b", "Test", "Seeds#", *columns],
            [
                [name(pair[0].a), name(pair[0].b), pair[0].test, pair[0].n]
                + [cell for it in pair for cell in _verdict(it)]
                for pair in pairs
            ],
        )

    def settings(self):
        """Table of every experiment's settings."""
        rows = []
        for it in self.found:
            seeds, command = "unknown", "unknown: only a .txt is left"
            if it.settings is not None:
                flags = {"model": it.model, "data_file": it.runs[0].data_file} | it.settings
                command = shlex.join(["python", "main.py", *(word for it in flags.items() for word in words_of(*it))])
                seeds = tables.span(it.seeds)
            rows.append([it.data, it.label, _memory(it), seeds, command])
        return Table("Every experiment's settings", ["Data", "Experiment", "Memory#", "Seeds", "Command"], rows)

    def every_run(self):
        """Table of every run that counts."""
        columns = ["Data", "Learner", "Memory#", "Seed#", *(f"{it}#" for it in NAMES), "Seconds#"]
        return Table(
            "Every run counted",
            [*columns, "Finished, UTC", "Commit", "File"],
            [
                [it.data, it.label, _memory(it), "?" if run.seed is None else run.seed]
                + [Cell(minus(f"{100 * getattr(run, name):.2f}"), getattr(run, name)) for name in NAMES]
                + [Cell("–" if run.seconds is None else f"{run.seconds:.1f}", run.seconds or 0)]
                + [date(run.finished), (run.about["commit"] or "–")[:8], run.path]
                for it in self.found
                for run in it.runs
            ],
        )


def _memory(it):
    return Cell(it.memory_text, it.memory or 0)


def _number(it, name):
    """ "0.123 ± 0.004": the mean and sample standard deviation of one of VALUES."""
    mean, std = it.mean(name), it.std(name)
    if mean is None:
        return Cell("–", -1e99)
    return Cell(minus(f"{mean:.3g}" + (f" ± {std:.2g}" if std is not None else "")), mean)


def _verdict(it):
    interval = "" if it.low is None else f" [{signed(it.low)}, {signed(it.high)}]"
    p = Cell(p_value(it.p_holm), 2 if it.p_holm is None else it.p_holm)
    return Cell(signed(it.difference) + interval, it.difference), p, it.verdict


def write(report, out):
    """Writes report.md, report.csv, report.html and figures/*.png, *.pdf into the folder; returns the paths.

    Each file appears whole or not at all, and replaces that of an earlier report; all are made before the first is
    replaced. Raises UserError where out cannot be written.
    """
    out = Path(out)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # before the work: a folder that cannot be written
            contents = _contents(report)
        for name, content in contents.items():
            with writing(out / name) as file:
                file.write(content)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"--out {out} cannot be written: {why}; choose a folder that can") from error
    return [out / name for name in contents]


def _contents(report):
    """{path in the folder: bytes} of all files."""
    drawings = figures.draw_all(report.found, report.shown)
    made = {
        "report.csv": tables.as_csv(report.found),
        "report.md": as_markdown(report, drawings),
        "report.html": as_html(report, drawings),
    }
    contents = {name: text.encode() for name, text in made.items()}
    for it in drawings:
        files = {"png": it.png, "pdf": it.pdf}
        contents |= {f"figures/{it.name}.{ending}": drawn for ending, drawn in files.items() if drawn}
    return contents


def as_html(report, drawings):
    """The page: one file that needs no other and no network."""
    return _render("page.html", report, drawings, autoescape=True)


def as_markdown(report, drawings):
    """The tables and what they rest on; figures as links to their files."""
    return _render("page.md", report, drawings, finalize=_md)


def _render(template, report, drawings, **options):
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(template).render(
        report=report,
        drawings=drawings,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        definitions=DEFINITIONS,
        figures=figures,
        look=figures.looks(report.found),
        notices=notices(report),
        significance=SIGNIFICANCE,
        missing=[*[UNLISTED] * (report.expected is None), *report.gaps] or ["Nothing."],
        not_counted=skipped_lines(report),
    )


def notices(report):
    """Sentences that a reader must not miss, most weighty first."""
    said = []
    few = sum(len(it.runs) < tables.FEWEST_SEEDS for it in report.found)
    if few:
        said.append(f"{few} experiments have fewer than {tables.FEWEST_SEEDS} seeds: nothing is claimed of them.")
    if len(figures.representatives(report.found)) < len(report.found):
        said.append(
            "Some learners were run with several settings. The tables have all; the figures have, of each learner, "
            "memory size and data set, the settings with most seeds, then best RA."
        )
    if report.gaps:
        said.append(f"{len(report.gaps)} experiments lack runs: see What is missing.")
    if not all(run.identity for run in report.runs):
        said.append(figures.UNKNOWN_DATA)
    if report.skipped:
        said.append(f"{len(report.skipped)} files were skipped: see What is not counted.")
    codes = defaultdict(set)
    for run in report.runs:
        codes[run.model] |= {run.about["code"] or run.about["commit"]} - {None}
    mixed = [f"{len(found)} of {model}" for model, found in codes.items() if len(found) > 1]
    if mixed:
        said.append(f"Runs of several versions of the program stand beside each other: {', '.join(mixed)}.")
    if any(run.about["dirty"] for run in report.runs):
        said.append("Some runs were made by a checkout with local changes.")
    return said


UNLISTED = "No list of experiments was given: only seeds that others have can be missed."
SIGNIFICANCE = (
    "Two-sided t-tests on the seeds' values, between learners on the same data with the same memory; those without a "
    "memory to size are compared with each of these, and with one another in a table of their own. Paired: by seed, "
    f"where at least {tables.FEWEST_SEEDS} seeds were run with both, since runs of one seed share their first weights "
    "and order of examples; Welch's test elsewhere. p by Holm's method, whose family is all tests of one metric in one "
    f"table. A difference counts where p < {tables.LEVEL:g}; with fewer than {tables.FEWEST_SEEDS} seeds on a side "
    "nothing is tested and nothing claimed. Differences are a − b in percentage points, in brackets the 95 % interval "
    "of this difference alone. Hyperparameters are taken as given: a choice by these same seeds would favour whatever "
    "was tuned most."
)


def skipped_lines(report):
    lines = [f"{it.path}: {it.reason}" for it in report.skipped[:MOST_LISTED]]
    if len(report.skipped) > MOST_LISTED:
        lines.append(f"… and {len(report.skipped) - MOST_LISTED} more files")
    lines += [f"{old.path}: the same experiment and seed as the newer {new.path}" for old, new in report.superseded]
    return lines or ["Everything is."]


def minus(text):
    return str(text).replace("-", "\N{MINUS SIGN}")


def signed(value):
    """A difference in percentage points, with its sign."""
    return minus(f"{100 * value:+.2f}")


def p_value(value):
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _md(text):
    return text if isinstance(text, Markup) else tables.markdown(text)


def open_report(folder, skipped, runs, name=None, expected=None):
    """The Report of runs that read_results found.

    name   the run of the heat map: its name or a part that no other has; None: the one with the best RA
    Raises UserError where name is none or several.
    """
    found, superseded = tables.experiments(runs)
    counted = [run for it in found for run in it.runs]
    if name is None:
        shown = max(counted, key=lambda run: run.RA)
    else:
        matches = [run for run in counted if name in (run.name, run.path)]
        matches = matches or [run for run in counted if name in run.path]
        if len(matches) != 1:
            what = "no counted run has it" if not matches else f"{len(matches)} runs have it, {matches[0].name} first"
            raise UserError(f"--run {name} must be the name of one run, or a part of one name alone: {what}")
        shown = matches[0]
    return Report(readable(str(folder)), found, superseded, skipped, expected, shown)
