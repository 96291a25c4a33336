"""The figures that people of this field look at, each drawn once per format.

Drawn in the light palette; the SVG has a style sheet of its own that shows it in the dark one where the reader prefers
that. A learner has the same colour, marker and line style in all figures. Each function draws whatever it is given, and
returns the figure and perhaps more to say of it, or else a sentence: why there is nothing to draw. Its docstring is the
figure's heading and caption.
"""

import hashlib
import io
import re
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from disk.resources import n_usable_cores
from report import tables

# Chosen by search: at least 3:1 against the background, and no two closer than 0.06 (OKLab) to normal, protan, deutan
# or tritan eyes. In the order of tables.ORDER; learners of other names take them from the start again.
LIGHT = (
    *("#6b6c6f", "#2f2e2a", "#8b7a02", "#6c4097", "#4f8f5c", "#3099c2", "#2141d0", "#ac3314", "#c3881a", "#810252"),
    *("#5c3505", "#ee55b9", "#c44993", "#5967d2", "#7e4849", "#b66aff", "#0b4d72", "#8a12ff", "#1d2d7a", "#55159e"),
)
DARK = (
    *("#95949a", "#fdf4e6", "#f2d646", "#d491f9", "#42cf92", "#a8d8f4", "#4577d3", "#e85a11", "#fd9407", "#b24575"),
    *("#66945c", "#fcb0c5", "#da27cc", "#8365a6", "#d0092b", "#cc5dfb", "#58accc", "#7740f7", "#48fc96", "#457243"),
)
MARKERS = "xo+*sv^DPX<>phd4|123"
DASHES = [(0, dash) if dash else "-" for dash in (
    (1, 1.2), (6, 2), (4, 1.5, 1, 1.5), (8, 1.5, 1, 1.5, 1, 1.5), None, (5, 1), None, None, (7, 1.2), (3, 1)
)]  # fmt: skip
INK, MUTED, RULE, PAPER = "#1b1f24", "#59606a", "#d8dce1", "#fefefe"
NOTHING = "There are no runs."
MOST_CURVES, MOST_POINTS, MOST_NUMBERED = 20, 60, 25  # in a panel of curves, on a curve, tasks of a matrix
MOST_TOGETHER = 12  # learners in a panel, unless all are the paper's, or none
# from the first task to the last
TASKS_LIGHT = tuple(map(to_hex, matplotlib.colormaps["plasma"](np.linspace(0.02, 0.75, MOST_CURVES))))
TASKS_DARK = tuple(map(to_hex, matplotlib.colormaps["plasma"](np.linspace(0.38, 0.98, MOST_CURVES))))
IN_THE_DARK = dict(zip((INK, MUTED, RULE, PAPER), ("#e7e9ec", "#a3abb6", "#363d47", "#15181d"), strict=True))
IN_THE_DARK |= dict(zip((*LIGHT, *TASKS_LIGHT), (*DARK, *TASKS_DARK), strict=True))
STYLE_SHEET = "@media screen and (prefers-color-scheme: dark) {{ {} }}".format(
    " ".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in IN_THE_DARK.items()
        for kind in ("fill", "stroke")
    )
)
WIDTH, PANELS_WIDE, PANEL = 11.0, 3, 3.0  # inches, panels in a row, a panel's height
MOST_OF_NAME = 1.7  # inches of a learner's name, which is of any length, beside a bar, above a panel or in a legend
TITLED = 0.77  # share of a panel's width, with the room beside it, that a title may take
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mer",
    "pdf.fonttype": 42,
    "text.parse_math": False,
}
BARS = {
    "RA": "Retained accuracy, RA",
    "LA": "Learning accuracy, LA",
    "BTI": "Backward transfer and interference, BTI",
}
DATELESS = ({"metadata": {"Date": None}}, {"metadata": {"CreationDate": None}})  # the same picture, the same file
FORMATS = {"svg": {"transparent": True} | DATELESS[0], "png": {"dpi": 150}, "pdf": DATELESS[1]}
UNKNOWN_DATA = f"{tables.UNKNOWN_DATA}: which tasks exactly is not recorded; only the file's name tells their data."


@dataclass(frozen=True)
class Drawing:
    """One figure: its file name without ending, heading, caption, and itself; None where there is nothing to show.

    width   of the svg, in points
    """

    name: str
    data: str | None
    title: str
    caption: str
    width: float = 0
    svg: bytes | None = None
    png: bytes | None = None
    pdf: bytes | None = None


def looks(found):
    """{label: how its lines look, for matplotlib}: a model's colour is the same wherever it is drawn.

    What is not just this program's learner is hollow.
    """
    names = [*tables.ORDER, *sorted({it.model for it in found} - set(tables.ORDER))]
    result, variants = {}, Counter()
    for label, model in sorted({(it.label, it.model) for it in found}):
        place, is_variant = names.index(model), label != model
        variants[model] += is_variant
        turn = place // len(LIGHT) + max(0, variants[model] - 1)  # the same colours, other markers
        result[label] = {
            "color": LIGHT[place % len(LIGHT)],
            "marker": MARKERS[(place + 3 * turn) % len(MARKERS)],
            "linestyle": DASHES[(place + 5 * turn) % len(DASHES)],
            "markeredgewidth": 1.2,
            "fillstyle": "none" if is_variant else "full",
        }
    return result


def draw_all(found, run):
    """[Drawing] of these experiments, on as many cores as pay; run is the one whose accuracy matrix is shown."""
    look, shown = looks(found), representatives(found)
    jobs = [
        (function, data, [it for it in shown if it.data == data], look)
        for data in tables.data_sets(found)
        for function in (bars, first_task, seen_tasks, task_curves)
    ]
    aligned = [it for it in shown if len(it.values["cosine_within"]) or len(it.values["cosine_between"])]
    for data in tables.data_sets(aligned):
        here = [it for it in aligned if it.data == data]
        jobs += [(alignment, data, here, look), (alignment_matrix, data, here)]
    jobs += [(memory, None, shown, look), (seconds, None, shown, look), (accuracy_matrix, None, run)]
    workers = min(n_usable_cores(), len(jobs) // 4)
    if workers > 1:
        with suppress(BrokenProcessPool), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            return list(pool.map(draw, jobs))
    return [draw(job) for job in jobs]


def draw(job):
    """The Drawing of a job: (a figure function of this module, name of the data set or None, its arguments…)."""
    function, data, *arguments = job
    title, caption = (" ".join(part.split()) for part in function.__doc__.split("\n\n"))
    title = title.removesuffix(".")
    name = "_".join(filter(None, (function.__name__, data and _file_name(data))))
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the SVG leaves them to the reader's own fonts
        made = function(*arguments)
        if isinstance(made, str):
            return Drawing(name, data, title, made)
        figure, *more = made if isinstance(made, tuple) else (made,)
        figure.draw_without_rendering()  # once: that places everything
        figure.set_layout_engine("none")
        made = {}
        for ending, options in FORMATS.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, **options)
            made[ending] = buffer.getvalue()
    made["svg"] = made["svg"].replace(b"</style>", STYLE_SHEET.encode() + b"</style>", 1)
    if tables.UNKNOWN_DATA.encode() in made["svg"]:
        more.append(UNKNOWN_DATA)
    return Drawing(name, data, title, " ".join([caption, *more]), 72 * figure.get_figwidth(), **made)


def _file_name(data):
    """A data set's name as a part of file names: of its letters and digits, with a hash where that loses something."""
    plain = re.sub(r"[^\w.-]+", "_", data)[:60]
    return plain if plain == data else f"{plain}_{hashlib.sha256(data.encode()).hexdigest()[:8]}"


def representatives(found):
    """One experiment per data set, learner and memory: that with most seeds, then best RA."""
    best = {}
    for it in sorted(found, key=lambda it: (len(it.runs), it.mean("RA"))):
        best[it.data, it.label, it.memory] = it
    return [it for it in found if it in best.values()]


def _grid(n, look, labels=(), wide=PANELS_WIDE, **options):
    """(figure, n axes, columns): panels, at most `wide` in a row, below a legend of these labels."""
    columns = min(n, wide)
    rows, width = -(-n // columns), WIDTH if columns > 1 else 0.64 * WIDTH
    names = [fitted(label, MOST_OF_NAME) for label in labels]
    per_row = int(width / max(1.2, 0.65 + max(map(_inches, names), default=0)))
    legend_rows = -(-len(labels) // per_row)
    figure = Figure(figsize=(width, rows * (PANEL + 0.62) + 0.2 * legend_rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat[n:]:
        axis.remove()
    for axis in axes.flat[:n]:
        axis.xaxis.set_tick_params(labelbottom=True)
    if labels:
        legend = figure.legend(
            [Line2D([], [], **look[label]) for label in labels],
            [str(place) for place in range(len(labels))],
            loc="outside upper left",
            ncols=-(-len(labels) // legend_rows),
            handlelength=2.6,
            columnspacing=1.3,
            fontsize=9,
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # only now: as a label one that begins with _ is left out
    return figure, list(axes.flat[:n]), columns


@cache
def _font(weight):
    return get_font(findfont(FontProperties(weight=weight)))


def _inches(text, size=9.0, weight="normal"):
    font = _font(weight)
    font.set_size(size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72


def fitted(text, inches, size=9.0, weight="normal"):
    """The text, shortened in its middle where it would be wider."""
    wide = _inches(text, size, weight)
    if wide <= inches:
        return text
    n = max(2, int(len(text) * inches / wide) - 1)
    return text[: n - n // 2].rstrip() + "…" + text[-(n // 2) :].lstrip()


def _title(axis, text, inches, size=9.5):
    axis.set_title(fitted(text, inches, size, "bold"), fontsize=size)


def _memories(it):
    return f" · {it.memory}" if it.memory else ""


def _in_percent(value, _):
    return f"{round(100 * value, 6) + 0.0:g}".replace("-", "\N{MINUS SIGN}")


def _percent(axis, label=""):
    axis.set_major_formatter(FuncFormatter(_in_percent))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_label_text(label)


def _labels(experiments):
    return list(dict.fromkeys(it.label for it in experiments))


def mean_curve(runs, value):
    """(position, mean, sample standard deviation or None) over runs of value(run), (E,) or (E, T) each.

    Runs evaluated at other places are interpolated to those of the run with fewest evaluations.
    """
    base = min((run.position for run in runs), key=len)
    rows = np.array([np.apply_along_axis(partial(np.interp, base, run.position), 0, value(run)) for run in runs])
    return base, rows.mean(0), rows.std(0, ddof=1) if len(rows) > 1 else None


def bars(experiments, look):
    """RA, LA and BTI.

    Bars are means over seeds, whiskers ± one sample standard deviation, dots single seeds.
    """
    if not experiments:
        return NOTHING
    shelf, groups = tables.shelves(experiments), defaultdict(list)
    for it in experiments:
        groups[-1 if it.settings is None else shelf.get(it.memory, 0)].append(it)
    places, ticks, at = [], [], 0.0
    for size, members in sorted(groups.items()):
        ticks.append((at, {-1: "memory unknown", 0: "no memory size"}.get(size, f"{size} memories")))
        places += [(at + 1 + turn, it) for turn, it in enumerate(members)]
        at += len(members) + 1.35
    headings, y = len(ticks), np.array([place for place, _ in places])
    figure = Figure(figsize=(WIDTH, max(0.205 * at, 1.2) + 0.75), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    colours = [look[it.label]["color"] for _, it in places]
    faces = [
        (colour, 0.8 if look[it.label]["fillstyle"] == "full" else 0.3)
        for colour, (_, it) in zip(colours, places, strict=True)
    ]
    for axis, (metric, title) in zip(axes, BARS.items(), strict=True):
        axis.set_title(title)
        means = np.array([it.mean(metric) for _, it in places])
        stds = np.array([it.std(metric) or 0 for _, it in places])
        seeds = np.array([(value, place) for place, it in places for value in it.values[metric]])
        whiskers = np.where(stds > 0, stds, np.nan)
        axis.barh(y, means, height=0.72, color=faces, edgecolor=colours, linewidth=0.8)
        axis.errorbar(means, y, xerr=whiskers, fmt="none", color=INK, ecolor=INK, elinewidth=0.9, capsize=2)
        axis.plot(*seeds.T, ".", color=INK, markersize=2.6, alpha=0.7, zorder=3)
        low, high = min(0, (means - stds).min(), seeds[:, 0].min()), max(0, (means + stds).max(), seeds[:, 0].max())
        for place, mean, std in zip(y, means, stds, strict=True):
            edge = max(mean + std, seeds[seeds[:, 1] == place, 0].max(), 0)
            text = f"{100 * mean:.1f}".replace("-", "\N{MINUS SIGN}")
            axis.annotate(text, (edge, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
        wide = max(high - low, 0.01)
        axis.set_xlim(low - 0.04 * wide if low else 0, high + 0.13 * wide)
        _percent(axis.xaxis, "%" if metric != "BTI" else "percentage points")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.axvline(0, color=MUTED, linewidth=0.8)
    axes[0].set_ylim(at - 0.6, -0.7)
    exact = [f" ({it.memory})" if it.memory != shelf.get(it.memory) else "" for _, it in places]
    ticks += [(place, fitted(it.label, MOST_OF_NAME) + size) for (place, it), size in zip(places, exact, strict=True)]
    axes[0].set_yticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=8.5)
    for tick in axes[0].get_yticklabels()[:headings]:
        tick.set_fontweight("bold")
    return figure


def first_task(experiments, look):
    """Accuracy on the first task.

    How much of the first task is left while the others are learned. Lines are means over seeds, bands ± one sample
    standard deviation.
    """
    return _evolution(experiments, look, "accuracy on task 1 (%)", lambda run: run.accuracies[:, 0])


def seen_tasks(experiments, look):
    """Mean accuracy on the tasks seen so far.

    The task being learned counts as seen. Lines are means over seeds, bands ± one sample standard deviation.
    """
    return _evolution(experiments, look, "mean accuracy on tasks seen (%)", lambda run: run.seen)


def _evolution(experiments, look, y_label, value):
    if not experiments:
        return NOTHING
    groups = _groups(experiments)
    panels = [(size, name, members) for name, group in groups for size, members in tables.tables_of(group)]
    wide = min(PANELS_WIDE, -(-len(panels) // len(groups)))
    figure, axes, columns = _grid(len(panels), look, _labels(experiments), wide, sharex=True, sharey=True)
    for place, (axis, (size, name, members)) in enumerate(zip(axes, panels, strict=True)):
        axis.set_title(" · ".join(filter(None, (size and f"{size} memories", name))))
        for it in members:
            _curve(axis, it, look, *mean_curve(it.runs, value))
        axis.set_xlim(0, max(it.runs[0].n_tasks for it in members))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("tasks learned")
        _percent(axis.yaxis, y_label if place % columns == 0 else "")
    axes[0].set_ylim(0, None)  # at last: from then on the panels, which share it, don't make room for what is drawn
    return figure, *(["Learners without a memory to size stand in every panel."] if len(panels) > len(groups) else [])


def _groups(experiments):
    """[(name, [Experiment])]: the paper's learners apart from the others where they are too many for one panel."""
    of_paper = [it.model in tables.PAPER for it in experiments]
    if len(_labels(experiments)) <= MOST_TOGETHER or all(of_paper) or not any(of_paper):
        return [("", experiments)]
    parts = {"the paper's learners": True, "what came after": False}
    return [
        (name, [it for it, mine in zip(experiments, of_paper, strict=True) if mine == wanted])
        for name, wanted in parts.items()
    ]


def _curve(axis, it, look, position, mean, std):
    line, every = look[it.label], max(1, len(position) // 6)
    if std is not None:
        axis.fill_between(position, mean - std, mean + std, color=line["color"], alpha=0.13, linewidth=0)
    offset = (list(look).index(it.label) + 1) * every // (len(look) + 1)
    axis.plot(position, mean, markevery=(offset, every), **line)


def task_curves(experiments, look):
    """Each task's own curve.

    Accuracy from the moment its learning begins; thick: the first. Means over seeds. Numbers: memories.
    """
    if not experiments:
        return NOTHING
    shelf, rows = tables.shelves(experiments), []  # of one memory size each, below one another those of one learner
    for _, group in _groups(experiments):
        by_size = defaultdict(list)
        for it in group:
            by_size[shelf.get(it.memory, 0)].append(it)
        rows += [(_labels(it for it in group if it.memory), by_size[size]) for size in sorted(by_size)]
    columns = max(max(len(sized), len(members)) for sized, members in rows)
    longest = max(_inches(it.label + _memories(it), 8.5, "bold") for it in experiments)
    wide = min(max(1.5, longest / TITLED + 0.1), MOST_OF_NAME / TITLED)
    figure = Figure(figsize=(max(WIDTH, wide * columns), 1.75 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    n_tasks = max(it.runs[0].n_tasks for it in experiments)
    unused = set(axes.flat)
    for line, (sized, members) in zip(axes, rows, strict=True):
        for turn, it in enumerate(members):
            axis = line[sized.index(it.label) if it.memory else turn]
            unused.discard(axis)
            _one_panel_of_curves(axis, it, TITLED * figure.get_figwidth() / columns)
    axes[0, 0].set_xlim(0, n_tasks)
    axes[0, 0].set_ylim(0, 1)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for line in axes:
        _percent(line[0].yaxis, "accuracy (%)")
    for column in axes.T:
        drawn = [axis for axis in column if axis not in unused]
        if drawn:
            drawn[-1].set_xlabel("tasks learned")
            drawn[-1].xaxis.set_tick_params(labelbottom=True)
    for axis in unused:
        axis.remove()
    step = -(-n_tasks // MOST_CURVES)
    return figure, "Of every task." if step == 1 else f"Of tasks 1, {1 + step}, {1 + 2 * step} and so on."


def _one_panel_of_curves(axis, it, inches):
    position, mean, _ = mean_curve(it.runs, lambda run: run.accuracies)
    tasks = range(0, mean.shape[1], -(-mean.shape[1] // MOST_CURVES))
    thin = np.unique(np.linspace(0, len(position) - 1, min(MOST_POINTS, len(position))).round().astype(int))
    lines = []
    for task in tasks:
        learning = np.flatnonzero((position >= task) & (position <= task + 1))
        rows = np.union1d(thin[position[thin] >= task], learning)
        lines.append(np.column_stack((position[rows], mean[rows, task])))
    colours = [TASKS_LIGHT[task * MOST_CURVES // len(mean.T)] for task in tasks]
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=[1.7] + [0.8] * (len(lines) - 1)))
    name = fitted(it.label, inches - _inches(_memories(it), 8.5, "bold"), 8.5, "bold")
    axis.set_title(name + _memories(it), fontsize=8.5, pad=3)


def memory(experiments, look):
    """Retained accuracy against memory.

    Means over seeds, whiskers ± one sample standard deviation. Level lines: learners whose memory is not a size to
    choose.
    """
    known = [it for it in experiments if it.settings is not None]
    sizes = sorted({it.memory for it in known if it.memory})
    if not sizes:
        return "No learner here has a memory whose size is known."
    figure, panels = _against(known, look, "memories")
    for axis, lines in panels:
        for line, mine in lines:
            points = np.array([(it.memory, it.mean("RA"), it.std("RA") or 0) for it in mine if it.memory])
            if len(points):
                axis.errorbar(*points.T, capsize=2.5, elinewidth=1, **line)
            for it in mine[: len(mine) - len(points)]:
                axis.axhline(it.mean("RA"), color=line["color"], linestyle=line["linestyle"], linewidth=1.2)
                axis.plot([0.985], [it.mean("RA")], transform=axis.get_yaxis_transform(), **line)
        axis.set_xscale("log", base=2)
        axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.9)
        axis.xaxis.set_major_locator(FixedLocator(sorted(set(tables.shelves(known).values()))))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
    return figure


def seconds(experiments, look):
    """Retained accuracy against time.

    Wall time of learning and evaluation, means over seeds, whiskers ± one sample standard deviation; a learner's memory
    sizes are joined, larger markers for larger memories. Times compare on one host only.
    """
    timed = [it for it in experiments if it.mean("seconds")]
    if not timed:
        return "No run's time is known."
    figure, panels = _against(timed, look, "seconds per run")
    for axis, lines in panels:
        for line, mine in lines:
            points = np.array([(it.mean("seconds"), it.mean("RA")) for it in mine])
            axis.plot(*points.T, color=line["color"], linestyle=line["linestyle"], linewidth=1, alpha=0.7)
            for turn, (it, point) in enumerate(zip(mine, points, strict=True)):
                spread = {"xerr": it.std("seconds"), "yerr": it.std("RA")}
                axis.errorbar(*point, **spread, **line | {"markersize": 4.5 + 2 * turn}, elinewidth=0.9)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _against(experiments, look, x_label):
    """(figure, [(axis, [(how a learner's line looks, [its Experiment, by memory])])]): a panel of RA per data set."""
    names, found = tables.data_sets(experiments), []
    figure, axes, columns = _grid(len(names), look, _labels(experiments))
    for place, (axis, data) in enumerate(zip(axes, names, strict=True)):
        here = sorted((it for it in experiments if it.data == data), key=lambda it: it.memory or 0)
        _title(axis, data, 0.85 * figure.get_figwidth() / columns)
        axis.set_xlabel(x_label)
        _percent(axis.yaxis, "retained accuracy, RA (%)" if place % columns == 0 else "")
        mine = {label: [it for it in here if it.label == label] for label in _labels(experiments)}
        found.append((axis, [(look[label], members) for label, members in mine.items() if members]))
    return figure, found


def alignment(experiments, look):
    """How the loss gradients of tasks lie to each other.

    Means over pairs of test examples of different tasks seen so far, and of one task. Above zero a step for one example
    helps the other (transfer), below it harms it (interference). Lines are means over seeds, bands ± one sample
    standard deviation. Numbers: memories.
    """
    if not experiments:
        return NOTHING
    panels = tables.tables_of(experiments)
    titles = {"cosine, different tasks": ("cosine", 0), "cosine, one task": ("cosine", 1)}
    titles["inner product, different tasks"] = ("inner", 0)
    figure, axes, columns = _grid(len(panels) * len(titles), look, _labels(experiments), sharex=True)
    for place, (size, members) in enumerate(panels):
        for axis, (title, (kind, column)) in zip(axes[place * columns :], titles.items(), strict=False):
            axis.set_title(title + (f" · {size}" if size else ""))
            for it in members:
                runs = [run for run in it.runs if run.cosine is not None]
                _curve(axis, it, look, *mean_curve(runs, lambda run: getattr(run, kind)[:, column]))  # noqa: B023
            axis.axhline(0, color=MUTED, linewidth=0.8)
            axis.set_xlim(0, max(it.runs[0].n_tasks for it in members))
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_xlabel("tasks learned")
    return figure


def alignment_matrix(experiments):
    """Cosines of the loss gradients of tasks after the last one.

    Means over pairs of test examples of two tasks, on the diagonal of one task, and over seeds; tasks in order of
    presentation. Blue: a step for one task helps the other (transfer); red: it harms it (interference). The colours end
    at the largest of different tasks. Numbers: memories.
    """
    if not experiments:
        return NOTHING
    figure, axes, columns = _grid(len(experiments), {}, sharex=True, sharey=True)
    means = [np.mean([run.cosines for run in it.runs if run.cosines is not None], axis=0) for it in experiments]
    apart = np.concatenate([mean[~np.eye(len(mean), dtype=bool)] for mean in means])
    most = max(np.nan_to_num(np.abs(apart)).max(initial=0), 0.01)
    for place, (axis, it, mean) in enumerate(zip(axes, experiments, means, strict=True)):
        image = axis.imshow(mean, cmap="RdBu", vmin=-most, vmax=most, interpolation="nearest")
        _title(axis, it.label + _memories(it), TITLED * figure.get_figwidth() / columns)
        ticks = np.unique(np.linspace(1, len(mean), min(len(mean), 5)).round().astype(int))
        axis.set_xticks(ticks - 1, ticks)
        axis.set_yticks(ticks - 1, ticks)
        axis.grid(False)
        axis.set_xlabel("task")
        axis.set_ylabel("task" if place % columns == 0 else "")
    scale = figure.colorbar(image, ax=axes, pad=0.02, aspect=40, label="cosine")
    scale.outline.set_visible(False)
    return figure


def accuracy_matrix(run):
    """Accuracy matrix of one run.

    Below the white steps: tasks already learned. Rows and columns in order of presentation; the first row is before
    any of them was learned.
    """
    if run is None:
        return NOTHING
    matrix, n_tasks = np.vstack((run.baseline, run.matrix)), run.n_tasks
    figure = Figure(figsize=(8.2, 7.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if n_tasks <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            colour = "#ffffff" if value < 0.55 else "#000000"
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    edges = np.repeat(np.arange(n_tasks + 1), 2)
    axis.plot(edges[1:] - 0.5, edges[:-1] + 0.5, color="#ffffff", linewidth=1.3)
    axis.set_xlim(-0.5, n_tasks - 0.5)
    axis.set_ylim(n_tasks + 0.5, -0.5)
    ticks = np.unique(np.linspace(1, n_tasks, min(n_tasks, 20)).round().astype(int))
    axis.set_xticks(ticks - 1, ticks, fontsize=8)
    axis.set_yticks([0, *ticks], ["none", *ticks], fontsize=8)
    axis.grid(False)
    axis.set_xlabel("accuracy on task")
    axis.set_ylabel("after learning task")
    seed = "seed unknown" if run.seed is None else f"seed {run.seed}"
    _title(axis, f"{run.model} on {run.data_file}, {seed}: RA {100 * run.RA:.2f} %", 0.8 * figure.get_figwidth())
    scale = figure.colorbar(image, pad=0.02, aspect=40, label="%", format=FuncFormatter(_in_percent))
    scale.outline.set_visible(False)
    return figure, f"Run {run.name}."
