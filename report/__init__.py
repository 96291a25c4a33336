"""The report of runs: reading (read), tables and tests (tables), figures (figures), the page (page), packs (pack)."""

import os
from pathlib import Path

from disk.names import said, without_ending
from errors import UserError
from model.flags import same_size
from report.read import check_found, check_places, read_results


def some_runs(places, data=(), learners=(), sizes=()):
    """([Run], [Skipped]) of these folders and packs.

    data      names of data files, in full or as short as "rotations": only runs of these; () all
    learners  only these; () all
    sizes     only learners that remember so many examples, and those without a memory to size; () all
    Raises UserError where a place cannot be read, or nothing is found that was asked for.
    """
    check_places(places)
    runs, skipped = read_results(*places)
    check_found(runs, skipped, places)
    runs = _only(runs, "data", data, "data_file", lambda file, name: name in _names(file))
    runs = _only(runs, "learner", learners, "model", str.__eq__)
    runs = _only(runs, "memories", sizes, "memory", same_size)
    return runs, skipped


def _names(file):
    """What a data file may be called."""
    return file, without_ending(file), said(file)


def _only(runs, flag, wanted, attribute, agrees):
    """The runs whose attribute agrees with one of the wanted values, or is None.

    Raises UserError for a value that none agrees with.
    """
    values = {getattr(run, attribute) for run in runs} - {None}
    for one in wanted:
        if not any(agrees(value, one) for value in values):
            known = ", ".join(map(str, sorted(values)))
            raise UserError(f"--{flag} {one}: no run has it; choose from {known or 'none'}")
    kept = {value for value in values if not wanted or any(agrees(value, one) for one in wanted)} | {None}
    return [run for run in runs if getattr(run, attribute) in kept]


def make_report(*places, out=None, name=None, expected=None, **filters):
    """Reports the runs in these folders and packs into the folder `out` (by default `report` in the first folder).

    name      the run whose accuracy matrix is shown (default: best RA)
    expected  flags (dictionaries or Namespaces) of the experiments that there should be; what has no runs is named
    filters   see some_runs
    Returns (Report, paths written). Raises UserError where a place cannot be read or nothing is found, or out cannot be
    written.
    """
    runs, skipped = some_runs(places, **filters)
    from report import page  # with matplotlib, slow to import

    report = page.open_report(", ".join(map(str, places)), skipped, runs, name, expected)
    folder = places[0] if os.path.isdir(places[0]) else os.path.dirname(places[0])
    return report, page.write(report, out or Path(folder, "report"))
