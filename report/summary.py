"""One table of everything, as Markdown: learners down, data sets across. `python -m report table --help`"""

from collections import defaultdict

from disk.names import said
from report import tables


def summary(found, than=None):
    """Markdown: a line for each learner and memory size with its "RA ± sd / BTI ± sd" in percent on each data set.

    And a sentence before the table that says so.

    found   [tables.Experiment], in the order of tables.experiments
    than    label of a learner: * marks the RAs that differ from its own (tables.comparisons, Holm's correction); a
            learner without a memory to size has one where it differs at every size
    """
    starred = _different(found, than)
    data_sets, lines = tables.data_sets(found), defaultdict(dict)
    for data in data_sets:
        here = [it for it in found if it.data == data]
        shelf = tables.shelves(here)
        for it in here:
            lines[shelf.get(it.memory), it.kind][data] = it
    rows = [["learner", "memories", *(tables.markdown(said(data)) for data in data_sets)]]
    rows.append(["---"] * len(rows[0]))
    for (size, kind), row in sorted(lines.items(), key=_place):
        rows.append([tables.markdown(kind), str(size or "–"), *(_cell(row.get(data), starred) for data in data_sets)])
    return f"{_caption(found, than)}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _caption(found, than):
    counts = sorted({len(it.runs) for it in found})
    seeds = (
        f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else "1 seed" if counts == [1] else f"{counts[0]} seeds"
    )
    whose = f"{tables.markdown(than)}'s at the same memory size"
    star = f" *: the RA differs from {whose} (p < {tables.LEVEL}, Holm's correction)."
    return f"RA / BTI in percent: mean ± standard deviation over {seeds}.{star if than else ''}"


def _place(line):
    """What the lines are sorted by: first those without a memory to size, then the largest; the learners' order."""
    (size, _), row = line
    return -(size or float("inf")), min(tables.order(it)[2:] for it in row.values())


def _cell(it, starred):
    if it is None:
        return ""
    return f"{tables.percent(it, 'RA')}{'*' if it in starred else ''} / {tables.percent(it, 'BTI')}"


def _different(found, than):
    """The experiments whose RA differs from that of the learner `than` on every shelf that has both."""
    differs = defaultdict(list)
    for it in tables.comparisons(found, ["RA"]):
        if it.memory is not None and than in (it.a.label, it.b.label):
            differs[it.a if it.b.label == than else it.b].append(it.differs)
    return {it for it, verdicts in differs.items() if all(verdicts)}
