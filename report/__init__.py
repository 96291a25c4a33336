"""The report of a folder of results: reading (read), tables and tests (tables), figures (figures), the page (page)."""

import os
from pathlib import Path

from errors import UserError
from report.read import read_results


def make_report(results, out=None, data=None, name=None, expected=None):
    """Reports the runs below the folder `results` into the folder `out` (by default its subfolder `report`).

    data      count only runs of this data file
    name      the run whose accuracy matrix is shown (default: best RA)
    expected  flags (dictionaries or Namespaces) of the experiments that there should be; what has no runs is named
    Returns (Report, paths written). Raises UserError where results is no folder or holds no runs, or out cannot be
    written.
    """
    results = Path(results)
    if not results.is_dir():
        raise UserError(f"{results} is no folder; give the folder that main.py saved to, such as results/")
    if not os.access(results, os.R_OK | os.X_OK):
        raise UserError(f"{results} cannot be read; check its permissions")
    runs, skipped = read_results(results)
    if not runs:
        why = "".join(f"\n  skipped {it.path}: {it.reason}" for it in skipped[:5])
        more = f"\n  … and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise UserError(
            f"{results} holds no finished runs; make some with python main.py --save_path {results}{why}{more}"
        )
    from report import page  # with matplotlib, slow to import

    report = page.open_report(results, skipped, runs, data, name, expected)
    return report, page.write(report, out or results / "report")
