"""Tables, figures and a page of whatever runs are in a folder of results. See `python -m report --help`."""

import argparse
import sys
import time
from pathlib import Path

from disk.names import readable
from errors import UserError
from model.flags import integer, listed, nonempty
from report import make_report, pack, some_runs, summary, tables


def read_commands(path):
    """[{flag: value}] of the lines `python main.py …` in a file (-: standard input), as they are given there."""
    from sweep import commands  # slow: with torch

    try:
        lines = (sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--commands {path} cannot be read: {error}") from error
    found = commands.read(lines, path)
    if not found:
        raise UserError(f"--commands {path} has no line `python main.py …`; give the list of experiments")
    return [
        {flag: getattr(it.args, flag) for flag in ("model", "data_file", *map(commands.name_of, it.flags))}
        for it in found
    ]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return {"pack": pack_runs, "table": print_table}.get(" ".join(arguments[:1]), report_runs)(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def pack_runs(arguments):
    parser = argparse.ArgumentParser(prog="python -m report pack", description=pack.__doc__.split("\n")[0])
    parser.add_argument("places", nargs="+", metavar="PLACE", help="folder of results, with its subfolders, or pack")
    parser.add_argument("out", metavar="OUT.jsonl.gz", help="the pack; if it is there the runs are added")
    args = parser.parse_args(arguments[1:])
    n, skipped = pack.pack(args.places, args.out)
    for it in skipped:
        print(f"skipped {it.path}: {it.reason}", file=sys.stderr)
    print(f"{readable(args.out)}: {n} runs, {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0


def add_filters(parser):
    """Adds the places, and the filters of report.some_runs, which a sweep calls the same."""
    parser.add_argument("places", nargs="+", metavar="PLACE", help="folder of results, with its subfolders, or pack")
    group = parser.add_argument_group("which of the runs (each may be repeated, or a list with commas)")
    group.add_argument("--learner", action="extend", type=listed(str), default=[], help="only these learners")
    group.add_argument("--data", action="extend", type=listed(str), default=[], help="only these data: rotations, …")
    group.add_argument(
        "--memories",
        action="extend",
        type=listed(integer(1)),
        default=[],
        help="only learners that remember so many examples in all, and those without a memory to size",
    )


def filters_of(args):
    return {"data": args.data, "learners": args.learner, "sizes": args.memories}


def print_table(arguments):
    parser = argparse.ArgumentParser(prog="python -m report table", description=summary.__doc__.split(" `")[0])
    add_filters(parser)
    parser.add_argument(
        "--than",
        type=nonempty,
        metavar="LEARNER",
        help="mark by * the RAs that differ from this learner's at the same memory size (p < 0.05, Holm's correction)",
    )
    args = parser.parse_args(arguments[1:])
    runs, skipped = some_runs(args.places, **filters_of(args))
    for it in skipped:
        print(f"skipped {it.path}: {it.reason}", file=sys.stderr)
    found, _ = tables.experiments(runs)
    labels = dict.fromkeys(it.label for it in found)
    if args.than and args.than not in labels:
        raise UserError(f"--than {args.than}: no run is of that learner; choose from {', '.join(labels)}")
    print(summary.summary(found, args.than), end="")
    return 0


def report_runs(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m report",
        description=__doc__.split(" See")[0],
        epilog="python -m report pack PLACE… OUT.jsonl.gz puts all runs into one small file, which is a PLACE, too; "
        "python -m report table PLACE… prints one table of RA and BTI as Markdown.",
    )
    add_filters(parser)
    parser.add_argument("--out", type=nonempty, metavar="DIR", help="folder to write to (report in the first place)")
    parser.add_argument(
        "--run",
        type=nonempty,
        metavar="NAME",
        help="run whose accuracy matrix is shown, or a part of its name (best RA)",
    )
    parser.add_argument(
        "--commands",
        type=nonempty,
        metavar="FILE",
        help="lines `python main.py …` that should have been run: names what has no runs",
    )
    args = parser.parse_args(arguments)
    began = time.perf_counter()
    expected = read_commands(args.commands) if args.commands else None
    report, paths = make_report(*args.places, out=args.out, name=args.run, expected=expected, **filters_of(args))
    print(
        f"{len(report.runs)} runs of {len(report.found)} experiments; {len(report.skipped)} files skipped, "
        f"{len(report.superseded)} older runs of the same seed not counted"
    )
    page = next(path for path in paths if path.suffix == ".html")
    print(f"{readable(str(page))} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
