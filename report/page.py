"""What is handed out: report.md, report.csv, report.html and the figures' files."""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from disk.atomic import writing
from errors import UserError
from report import figures, tables
from report.read import METRICS, Run, date

MOST_LISTED = 200  # skipped files named one by one

DEFINITIONS = {
    "RA": "retained accuracy: the mean accuracy on all tasks after the last one has been learned",
    "LA": "learning accuracy: the mean of each task's accuracy right after it was learned",
    "BTI": "backward transfer and interference: the mean of each task's final accuracy less that right after it was "
    "learned; below zero is forgetting",
    "FWT": "forward transfer: the mean of each task's accuracy right before it is learned less that of the untrained "
    "net",
}


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

    @cached_property
    def made(self):
        return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

    def rows(self, data):
        return [it for it in self.found if it.data == data]

    def about_data(self, data):
        """One line for each kind of run of this data set: how many tasks, from where, and which numbers exactly."""
        lines = defaultdict(int)
        for it in self.rows(data):
            for run in it.runs:
                origin = run.about.get("origin") or "origin not recorded"
                identity = f"sha256 {run.identity[:16]}…" if run.identity else "identity not recorded"
                lines[f"{run.data_file}: {run.n_tasks} tasks; {origin}; {identity}"] += 1
        return sorted(lines.items())

    def provenance(self):
        """[(what, [(value, number of runs)])]: where the counted runs come from."""
        runs = self.runs

        def of(key):
            return tables.counts(run.about.get(key) for run in runs)

        def commit(run):
            name = run.about.get("commit")
            return name and name[:12] + (" with local changes" if run.about.get("dirty") else "")

        def versions(run):
            return (
                ", ".join(f"{name} {version}" for name, version in sorted(run.about.get("versions", {}).items()))
                or None
            )

        def code(run):
            return run.about.get("code") and f"{run.model} {run.about['code'][:12]}"

        seeds = tables.counts(run.seed for run in runs)
        return [
            ("Program", tables.counts(run.program for run in runs)),
            ("Commit", tables.counts(map(commit, runs))),
            ("Sources (sha256)", tables.counts(map(code, runs))),
            ("Versions", tables.counts(map(versions, runs))),
            ("Host", of("host")),
            ("Engine", of("engine")),
            ("Draws", of("draws")),
            ("Data (sha256)", tables.counts(run.identity for run in runs)),
            ("Threads", of("threads")),
            ("Seeds", sorted(seeds, key=lambda it: (len(it[0]), it[0]))),
        ]

    def dates(self):
        days = sorted({date(run.finished)[:10] for run in self.runs})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    def hours(self):
        return sum(run.seconds or 0 for run in self.runs) / 3600

    def notes(self):
        """[(learner, note, sum over its runs)] of what the learners reported."""
        sums = defaultdict(int)
        for it in self.found:
            for run in it.runs:
                for name, value in run.about.get("notes", {}).items():
                    sums[it.label, name] += value
        return [(*key, f"{value:g}") for key, value in sorted(sums.items())]

    def shelves_compared(self, data):
        """[(memory, [(name of a, name of b, {metric: Comparison})])] of a data set."""
        found = defaultdict(dict)
        for it in self.comparisons:
            if it.data == data:
                found[it.memory].setdefault((id(it.a), id(it.b)), {})[it.metric] = it

        def name(it, memory):
            return it.kind if it.memory == memory else f"{it.kind} ({it.memory_text})"

        def pair(by_metric):
            it = by_metric["RA"]
            return name(it.a, it.memory), name(it.b, it.memory), by_metric

        return [
            (memory, [pair(it) for it in found[memory].values()]) for memory in sorted(found, key=lambda it: it or 0)
        ]


def write(report, out):
    """Writes report.md, report.csv, report.html and figures/*.png, *.pdf into the folder; returns the paths.

    Each file appears whole or not at all, and replaces that of an earlier report. Raises UserError where out cannot
    be written.
    """
    out = Path(out)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with writing(out / "report.csv", "w") as file:  # before the work: a folder that cannot be written
            file.write(tables.as_csv(report.found))
        drawings = figures.draw_all(report.found, report.shown)
        contents = {"report.md": as_markdown(report, drawings), "report.html": as_html(report, drawings)}
        for it in drawings:
            contents |= {f"figures/{it.name}.png": it.png, f"figures/{it.name}.pdf": it.pdf}
        for name, content in contents.items():
            with writing(out / name) as file:
                file.write(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written: {error.strerror or error}; choose a folder that can"
        ) from error
    return [out / "report.csv", *(out / name for name in contents)]


def as_html(report, drawings):
    """The page: one file that needs no other and no network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"date": date, "span": tables.span, "p": p_value, "signed": signed, "minus": minus}
    return environment.get_template("page.html").render(
        report=report,
        drawings=drawings,
        tables=tables,
        metrics=METRICS,
        definitions=DEFINITIONS,
        figures=figures,
        notices=notices(report),
        significance=SIGNIFICANCE,
        missing=gap_lines(report),
        not_counted=skipped_lines(report),
    )


def notices(report):
    """Sentences that a reader must not miss, most weighty first."""
    said = []
    few = [it for it in report.found if len(it.runs) < tables.FEWEST_SEEDS]
    if few:
        said.append(
            f"{len(few)} of {len(report.found)} experiments have fewer than {tables.FEWEST_SEEDS} seeds: nothing is "
            "claimed of them."
        )
    if len(figures.representatives(report.found)) < len(report.found):
        said.append(
            "Some learners were run with several settings. The tables have all; the figures have, of each learner, "
            "memory size and data set, the settings with most seeds, then best RA."
        )
    if report.gaps:
        said.append(f"{len(report.gaps)} experiments lack runs: see What is missing.")
    if report.skipped:
        said.append(f"{len(report.skipped)} files were skipped: see What is not counted.")
    codes = defaultdict(set)
    for run in report.runs:
        if run.about:
            codes[run.model].add(run.about.get("code") or run.about.get("commit"))
    mixed = [f"{len(found)} of {model}" for model, found in codes.items() if len(found) > 1]
    if mixed:
        said.append(f"Runs of several versions of the program stand beside each other: {', '.join(mixed)}.")
    if any(run.about.get("dirty") for run in report.runs):
        said.append("Some runs were made by a checkout with local changes.")
    return said


def as_markdown(report, drawings):
    """The tables and what they rest on; figures as links to their files."""
    lines = [
        "# Results",
        "",
        f"{len(report.runs)} runs of {len(report.found)} experiments, finished {report.dates()}. "
        f"Reported {report.made}.",
        "",
        *(f"- {text}" for text in notices(report)),
        "",
        "Accuracies in percent, mean ± sample standard deviation over seeds. Seconds: learning and evaluation, without "
        "reading the data.",
        "",
        *(f"- **{name}** {text}." for name, text in DEFINITIONS.items()),
    ]
    for data in report.data_sets:
        lines += ["", f"## {_md(data)}", ""]
        header = ["learner", "memory", "settings", *METRICS, "seeds", "seconds"]
        rows = [
            [
                it.label,
                it.memory_text,
                it.differs,
                *(tables.percent(it, m) for m in METRICS),
                len(it.runs),
                tables.duration(it),
            ]
            for it in report.rows(data)
        ]
        lines += _md_table(header, rows, left=(0, 2))
        lines += ["", *(f"- {_md(text)} ({n} runs)" for text, n in report.about_data(data))]
        lines += ["", *(f"![{it.title}](figures/{it.name}.png)" for it in drawings if it.data == data)]
    lines += [
        "",
        "## Memory, time, accuracy matrix",
        "",
        *(f"![{it.title}](figures/{it.name}.png)" for it in drawings if not it.data),
    ]
    lines += ["", "## Which differences are more than chance", "", SIGNIFICANCE]
    for data in report.data_sets:
        for memory, pairs in report.shelves_compared(data):
            lines += ["", f"### {_md(data)}, {f'{memory} memories' if memory else 'no memory'}", ""]
            rows = [
                [a, b, f"{len(found['RA'].a.runs)}, {len(found['RA'].b.runs)}"]
                + [
                    text
                    for it in found.values()
                    for text in (f"{100 * it.difference:+.2f}", p_value(it.p_holm), it.verdict)
                ]
                for a, b, found in pairs
            ]
            columns = [f"{metric} {part}" for metric in pairs[0][2] for part in ("difference", "p", "verdict")]
            lines += _md_table(["a", "b", "seeds", *columns], rows, left=(0, 1, 5, 8))
    lines += ["", "## What was run", ""]
    for what, found in report.provenance():
        lines.append(f"- {what}: " + "; ".join(f"{_md(text)} ({n})" for text, n in found))
    lines += [f"- {_md(label)}: {_md(name)} {value}" for label, name, value in report.notes()]
    lines += ["", "## What is missing", "", *(f"- {_md(line)}" for line in gap_lines(report))]
    lines += ["", "## What is not counted", "", *(f"- {_md(line)}" for line in skipped_lines(report))]
    return "\n".join(lines) + "\n"


SIGNIFICANCE = (
    "Welch's t-test, two-sided, on the seeds' values, between learners on the same data with the same memory; p by "
    "Holm's method, corrected for all comparisons of one metric in one table. A difference counts where p < "
    f"{tables.LEVEL:g}. With fewer than {tables.FEWEST_SEEDS} seeds on either side nothing is tested and nothing "
    "claimed. Differences are a − b in percentage points, in brackets the 95 % interval of this difference "
    "alone. Seeds that share their order of examples are treated as independent, and hyperparameters as given: "
    "a choice by these same seeds would favour whatever was tuned most."
)


def gap_lines(report):
    lines = []
    if report.expected is None:
        lines.append("No list of experiments was given: only seeds that others have can be missed.")
    for gap in report.gaps:
        where = f"{gap.data}: {gap.what}"
        if gap.found:
            lines.append(f"{where} has seeds {tables.span(gap.found)}, lacks {tables.span(gap.lacking)}.")
        else:
            lines.append(f"{where} has no runs.")
    return lines if report.gaps else [*lines, "Nothing."]


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
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _md(text):
    """Text that means nothing else to Markdown, on one line."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    return re.sub(r"([\\`*\[\]<>|#~]|\b_|_\b)", r"\\\1", text)


def _md_table(header, rows, left):
    rule = [":--" if place in left else "--:" for place in range(len(header))]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *([_md(cell) for cell in row] for row in rows))]


def open_report(folder, skipped, runs, data=None, name=None, expected=None):
    """The Report of runs that read_folder found.

    data   counts runs of this data file alone
    name   the run of the heat map: its name or a part that no other has; None: the one with the best RA
    Raises UserError where nothing is left, or name is none or several.
    """
    if data is not None:
        files = sorted({run.data_file for run in runs})
        runs = [run for run in runs if data in (run.data_file, os.path.splitext(run.data_file)[0])]
        if not runs:
            raise UserError(f"--data {data}: no runs of it in {folder}; choose from {', '.join(files) or 'none'}")
    found, superseded = tables.experiments(runs)
    counted = [run for it in found for run in it.runs]
    if name is None:
        shown = max(counted, key=lambda run: run.RA)
    else:
        matches = [run for run in counted if name in (run.name, run.path)] or [
            run for run in counted if name in run.path
        ]
        if len(matches) != 1:
            what = "no counted run has it" if not matches else f"{len(matches)} runs have it, {matches[0].name} first"
            raise UserError(f"--run {name} must be the name of one run, or a part of one name alone: {what}")
        shown = matches[0]
    return Report(str(folder), found, superseded, skipped, expected, shown)
