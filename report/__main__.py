"""Tables, figures and a page of whatever runs are in a folder of results. See `python -m report --help`."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from errors import UserError
from report import make_report


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
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__.split(" See")[0])
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
