"""The report of runs: reading (read), tables and tests (tables), figures (figures), the page (page), packs (pack)."""

import os
from pathlib import Path

from errors import UserError
from report.read import check_places, read_results


def some_runs(places):
    """([Run], [Skipped]) of these folders and packs. Raises UserError where one cannot be read or all hold no run."""
    check_places(places)
    runs, skipped = read_results(*places)
    if not runs:
        why = "".join(f"\n  skipped {it.path}: {it.reason}" for it in skipped[:5])
        more = f"\n  … and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        shown = ", ".join(map(str, places))
        raise UserError(f"{shown} holds no finished runs; make some with python main.py --save_path …{why}{more}")
    return runs, skipped


def make_report(*places, out=None, data=None, name=None, expected=None):
    """Reports the runs in these folders and packs into the folder `out` (by default `report` in the first folder).

    data      count only runs of this data file
    name      the run whose accuracy matrix is shown (default: best RA)
    expected  flags (dictionaries or Namespaces) of the experiments that there should be; what has no runs is named
    Returns (Report, paths written). Raises UserError where a place cannot be read or all of them hold no runs, or out
    cannot be written.
    """
    runs, skipped = some_runs(places)
    shown = ", ".join(map(str, places))
    from report import page  # with matplotlib, slow to import

    report = page.open_report(shown, skipped, runs, data, name, expected)
    folder = places[0] if os.path.isdir(places[0]) else os.path.dirname(places[0])
    return report, page.write(report, out or Path(folder, "report"))
