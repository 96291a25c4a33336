"""Tables, figures and a page of whatever runs are in a folder of results. See `python report.py --help`."""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from errors import UserError
from reporting.read import read_folder


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
    runs, skipped = read_folder(results)
    if not runs:
        why = "".join(f"\n  skipped {it.path}: {it.reason}" for it in skipped[:5])
        more = f"\n  … and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise UserError(
            f"{results} holds no finished runs; make some with python main.py --save_path {results}{why}{more}"
        )
    from reporting import page  # with matplotlib, slow to import

    report = page.open_report(results, skipped, runs, data, name, expected)
    return report, page.write(report, out or results / "report")


def read_commands(path):
    """[{flag: text}] of the lines `python main.py …` in a file (-: standard input).

    Raises UserError where there is none.
    """
    try:
        lines = (sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")).splitlines()
        commands = [words for words in (shlex.split(line, comments=True) for line in lines) if "main.py" in words]
    except (OSError, ValueError) as error:
        raise UserError(f"--commands {path} cannot be read: {error}") from error
    if not commands:
        raise UserError(f"--commands {path} has no line `python main.py …`; give the list of experiments")
    expected = []
    for line in commands:
        words = " ".join(line[line.index("main.py") + 1 :]).replace("=", " ").split()
        flags, texts = words[::2], words[1::2]
        if len(flags) != len(texts) or not all(it.startswith("--") for it in flags) or any("$" in it for it in texts):
            raise UserError(
                f"--commands {path}: {' '.join(line)!r} is not main.py with --flag VALUE …; give the commands written "
                "out, as mer_examples.sh --experiments prints them"
            )
        expected.append({flag.removeprefix("--"): text for flag, text in zip(flags, texts, strict=True)})
    return expected


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__.split(" See")[0])
    parser.add_argument("results", help="folder of results, searched with all its subfolders")
    parser.add_argument("--out", metavar="DIR", help="folder to write to (the subfolder report of the results)")
    parser.add_argument(
        "--run", metavar="NAME", help="run whose accuracy matrix is shown, or a part of its name (best RA)"
    )
    parser.add_argument("--data", metavar="FILE", help="count only runs of this data file (all)")
    parser.add_argument(
        "--commands", metavar="FILE", help="lines `python main.py …` that should have been run: names what has no runs"
    )
    args = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        expected = read_commands(args.commands) if args.commands else None
        report, paths = make_report(args.results, args.out, args.data, args.run, expected)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(report.runs)} runs of {len(report.found)} experiments; {len(report.skipped)} files skipped, "
        f"{len(report.superseded)} older runs of the same seed not counted"
    )
    print(f"{next(path for path in paths if path.suffix == '.html')} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
