"""Reads whatever runs lie in folders and packs, ours and the original program's, and names what it cannot count.

Each file is first put into the words of our .json; from those `run_of` computes everything anew, of result_t and
result_a alone. A file whose own numbers say something else is not counted.

Nothing that is read is trusted. A file is read at most to a limit, as plain data (JSON, `weights_only` pickles, text);
one that is damaged, foreign or half-written becomes a `Skipped` with the reason.
"""

import argparse
import gzip
import hashlib
import json
import os
import pickle
import re
import stat
import zipfile
import zlib
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache

import numpy as np

import metrics
from disk import names
from errors import UserError
from model.flags import CHANCE, DATA, FREE, PAPER, PLACE, memory_size
from run import FORMAT
from run.flags import MODEL, RUN_FLAGS

PACK, PACK_FORMAT = ".jsonl.gz", "mer-runs/1"  # a file of many runs: in its first line the format, then one in each
MOST_TOLD = 512 * 2**20  # bytes of a .json, a pack's line
MOST_BYTES = 64 * 2**20  # of a .txt, the pickle in a .pt, a .pt that cannot be mapped
MOST_RUNS = 100_000  # in a pack
MOST_TEXT = 1000  # characters of a flag's value
MOST_COUNT = 10**18 - 1  # of what is a whole number
MOST_ROWS = 120  # evaluations of a run that are kept for the figures
MOST_MEASURED = 1e30  # of a note, and of an inner product of gradients in float32: sums of squares are finite
ROUNDED = 2e-4  # how far a file's own numbers may be from ours: a .txt has four digits

# folders that hold no runs to report: those of this program, and what tuning tried
NO_RESULTS = ("bench", "equivalence", "logs", "records", "report", "tuning")
THIS, ORIGINAL, TEXT = "this one", "the original", "unknown: only a .txt is left"  # who ran it

# Flags that runs of one experiment may differ in. Which tasks it learned is told by their identity.
NO_MATTER = {flag.name for flag in RUN_FLAGS if flag.role in (CHANCE, DATA, FREE, PLACE)} | {MODEL.name}

MODELS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "model")
_NAME = re.compile(r"(?P<model>.[^_]*)_(?P<data>.+)_(?P<date>\d{4}(_\d\d){5})_[0-9a-f]{32}")
_FLAG = re.compile(r"\w{1,255}")


class Unreadable(Exception):
    """A file that is no complete run; the message says why."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not counted, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One finished run; T tasks in order of presentation, E evaluations, accuracies in 0..1.

    science     {flag: text} of what the distribution of its numbers depends on, besides the data; None where unknown
    memory      how many examples it may remember; None: none, or unknown
    seed        None where unknown
    history     what its learner had learned before: the first run first, each {"model", "data", "data_file", "n_tasks"}
    RA..        its summaries: see metrics
    before, after   mean accuracy on the tasks of its history, as it began and at its end; None where not evaluated
    seconds     wall time of learning and evaluation, without reading the data; None where unknown
    matrix      (T, T)  R[i, j] = accuracy on task j after learning task i
    baseline    (T,)    accuracy before anything was learned here
    position    (E,)    how many tasks have been learned at each evaluation; 3.5 is half-way through the fourth
    accuracies  (E, T)
    seen        (E,)    mean accuracy over the tasks seen so far, the current one included
    inner, cosine   (E, 2) mean inner product and cosine of loss gradients of examples of different tasks seen so far,
                and of one task (run.alignment), nan where there are no two; None where not measured
    cosines     (T, T)  the mean cosines at the end, by pair of tasks; None where not measured
    digest      tells whether two runs have the same evaluations
    about       where it comes from: engine, draws, threads, commit, dirty, code, versions, host, origin, notes
    """

    path: str
    name: str
    program: str
    model: str
    data_file: str
    identity: str | None
    science: dict | None
    memory: int | None
    seed: int | None
    history: tuple
    RA: float
    LA: float
    BTI: float
    FWT: float
    AAA: float
    forgetting: float
    before: float | None
    after: float | None
    seconds: float | None
    finished: float
    matrix: np.ndarray
    baseline: np.ndarray
    position: np.ndarray
    accuracies: np.ndarray
    seen: np.ndarray
    inner: np.ndarray | None
    cosine: np.ndarray | None
    cosines: np.ndarray | None
    digest: str
    about: dict

    @property
    def n_tasks(self):
        return len(self.baseline)

    # at the end, of different tasks and of one; None where unknown

    @property
    def inner_between(self):
        return _last(self.inner, 0)

    @property
    def inner_within(self):
        return _last(self.inner, 1)

    @property
    def cosine_between(self):
        return _last(self.cosine, 0)

    @property
    def cosine_within(self):
        return _last(self.cosine, 1)


def _last(measured, column):
    return None if measured is None or np.isnan(measured[-1, column]) else float(measured[-1, column])


def check_places(places):
    """Raises UserError where one is no file or folder that can be read."""
    for place in places:
        if not os.path.exists(place):
            raise UserError(f"{place} is no folder or pack; give the folder that main.py saved to, such as results/")
        if not os.access(place, os.R_OK | (os.X_OK if os.path.isdir(place) else 0)):
            raise UserError(f"{place} cannot be read; check its permissions")


def check_found(runs, skipped, places):
    """Raises UserError where there are no runs in these places."""
    if not runs:
        why = "".join(f"\n  skipped {it.path}: {it.reason}" for it in skipped[:5])
        more = f"\n  … and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        shown = ", ".join(map(str, places))
        raise UserError(f"{shown} holds no finished runs; make some with python main.py --save_path …{why}{more}")


def read_results(*places):
    """([Run], [Skipped]) of all in these folders, with their subfolders, and packs; each run once, in order of path."""
    found = [it for it, _ in records(*places)]
    runs, again = each_once([it for it in found if isinstance(it, Run)])
    skipped = [it for it in found if isinstance(it, Skipped)]
    where = Counter(run.path.partition(": ")[0] if PACK in run.path else os.path.dirname(run.path) for run in again)
    skipped += [
        Skipped(path or os.curdir, f"{n} of its runs are elsewhere too, and count once") for path, n in where.items()
    ]
    return runs, sorted(skipped, key=lambda it: it.path)


def records(*places):
    """Yields (Run, what its file says, in the words of our .json) for each run, (Skipped, None) for what is none."""
    for place in places:
        root = place if len(places) == 1 and os.path.isdir(place) else os.curdir
        for path, problem in _files_in(place):
            shown = names.readable(os.path.relpath(path, root))
            if problem:
                yield Skipped(shown, problem), None
            else:
                yield from _records_in(path, shown)


def each_once(runs):
    """([Run], [Run]): each run once, in order of path, and those that are one of them again.

    Runs of one name are the same where their evaluations are, or where only a .txt is left of one.
    """
    once, again = defaultdict(list), []
    for run in sorted(runs, key=lambda run: (run.program == TEXT, run.identity is None, run.path)):
        same = any(run.digest == it.digest or run.program == TEXT for it in once[run.name])
        (again if same else once[run.name]).append(run)
    return sorted((run for alike in once.values() for run in alike), key=lambda run: run.path), again


def _files_in(place):
    """Yields (path, None, or why it is not read) of a file, or of what is below a folder."""
    if not os.path.isdir(place):
        yield place, None
        return
    unlisted = []
    for here, folders, files in os.walk(place, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in NO_RESULTS))
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                yield os.path.join(here, name), "a symbolic link to a folder: not followed"
            elif name.endswith(tuple(READERS)):
                yield os.path.join(here, name), "a folder, not a file"
        best = {}
        for ending in reversed(READERS):
            best |= {(ending == PACK, it.removesuffix(ending)): it for it in files if it.endswith(ending)}
        yield from ((os.path.join(here, name), None) for name in sorted(best.values()))
    yield from ((error.filename, f"cannot be listed: {error.strerror}") for error in unlisted)


def told_by(path):
    """[what a file says of each of its runs, in the words of our .json], unchecked, but that its texts can be printed.

    Raises Unreadable or OSError, whatever the file is.
    """
    ending = next((ending for ending in READERS if str(path).endswith(ending)), None)
    if ending is None:
        raise Unreadable(f"none of {', '.join(READERS)}")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("not a regular file")
    try:
        found = _readable(READERS[ending](path))
    except (Unreadable, OSError):
        raise
    except Exception as error:
        raise Unreadable(f"cannot be read: {type(error).__name__}") from None
    return [{"format": FORMAT} | saved if ending in (".pt", ".txt") else saved for saved in found]


def _readable(value):
    if isinstance(value, str):
        return names.readable(value)
    if isinstance(value, list):
        return [_readable(it) if isinstance(it, str | list | dict) else it for it in value]
    if isinstance(value, dict):
        return {_readable(key): _readable(it) for key, it in value.items()}
    return value


def _records_in(path, shown):
    try:
        found = told_by(path)
    except Unreadable as error:
        beside = str(path).endswith(".pt") and os.path.exists(f"{str(path)[:-3]}.txt")
        yield Skipped(shown, f"{error}{'; remove it to have its .txt read' if beside else ''}"), None
    except OSError as error:
        yield Skipped(shown, f"cannot be read: {error.strerror or type(error).__name__}"), None
    else:
        for saved in found:
            name = saved.get("name")
            if not (names.is_name(name) and _NAME.fullmatch(name)):
                name = names.readable(os.path.basename(path).rpartition(".")[0])
            if _timestamp(saved.get("finished")) is None:
                saved["finished"] = _date(name, path)
            place = f"{shown}: {name}" if shown.endswith(PACK) else shown
            try:
                yield run_of(saved, name, place), saved | {"name": name}
            except Unreadable as error:
                yield Skipped(place, str(error)), None
            except Exception as error:  # no file, however odd, may cost the report of the others
                yield Skipped(place, f"cannot be read: {type(error).__name__}"), None


# -- each kind of file in the words of our .json


def read_json(path):
    """What one of our .json files says, as a list of one. Raises Unreadable or OSError."""
    raw = _read_bytes(path, MOST_TOLD)
    if FORMAT.split("/")[0].encode() not in raw:  # saves parsing large foreign files
        raise Unreadable("foreign or half-written: not a result of this program" if raw.strip() else "empty")
    return [_parse(raw)]


def read_pack(path):
    """What a pack says of each of its runs. Raises Unreadable or OSError."""
    found = []
    try:
        with gzip.open(path) as file:
            if _parse(_line(file)).get("format") != PACK_FORMAT:
                raise Unreadable(f"foreign: its first line does not say {PACK_FORMAT}")
            while line := _line(file):
                found.append(_parse(line))
                if len(found) > MOST_RUNS:
                    raise Unreadable(f"more than {MOST_RUNS} runs")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise Unreadable("half-written or damaged: not a whole gzip file") from None
    return found


def _line(file):
    line = file.readline(MOST_TOLD + 1)
    if len(line) > MOST_TOLD:
        raise Unreadable(f"a line is larger than {MOST_TOLD >> 20} MiB")
    return line


def read_object(path):
    """The dictionary that a JSON file holds. Raises Unreadable or OSError, whatever the file is."""
    return _readable(_parse(_read_bytes(path, MOST_TOLD)))


def _parse(raw):
    try:
        saved = json.loads(raw)
    except RecursionError:
        raise Unreadable("foreign: nested too deeply") from None
    except ValueError:
        raise Unreadable("half-written or damaged: not valid JSON") from None
    if not isinstance(saved, dict):
        raise Unreadable("no JSON object: of no known format")
    return saved


def read_pt(path):
    """What one of the original's .pt files says: (result_t, result_a, state_dict, stats, one_liner, args).

    Loaded as plain tensors and settings: a pickle that asks for anything else is refused, unrun. Weights are mapped,
    not read. Raises Unreadable or OSError.
    """
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _check_zip(path)
    elif os.path.getsize(path) > MOST_BYTES:
        raise Unreadable(f"larger than {MOST_BYTES >> 20} MiB and not in a format that can be mapped into memory")
    elif not _is_pickle(path):
        raise Unreadable("damaged or foreign: not what torch.save writes" if os.path.getsize(path) else "empty")
    import torch  # slow to import, and only these files need it

    from disk import safe

    try:
        with open(path, "rb") as file:
            safe.check_pickles(file, also={"argparse Namespace"})
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = safe.load_plain(path, mmap=mapped)
        safe.check_tensors(saved, os.path.getsize(path))
    except OSError:
        raise
    except safe.OtherProtocol as error:
        raise Unreadable(f"refused: {error}") from None
    except Exception as error:  # whatever a damaged or hostile file makes of the loader
        asked = re.search(r"GLOBAL (\S+) in it is never run", str(error))
        what = f"refused: it asks for {asked[1]}, which is no plain value, and is not run" if asked else None
        raise Unreadable(what or f"damaged or foreign: {type(error).__name__}") from None
    if not isinstance(saved, tuple) or len(saved) != 6 or not isinstance(saved[5], argparse.Namespace):
        raise Unreadable("not the six parts that a run saves")
    result_t, result_a, _, stats, one_liner, args = saved
    args = {name: _known(value) for name, value in vars(args).items()}
    for key in ("model", "data_file"):
        if not isinstance(args.get(key), str):
            raise Unreadable(f"its flags hold no {key}: another program's")
    try:
        numbers = {
            "stats": dict(zip(("RA", "BTI", "FWT"), map(float, stats), strict=False)),
            "result_t": torch.as_tensor(result_t).long().flatten().tolist(),
            "result_a": torch.as_tensor(result_a).float().tolist(),
        }
    except Exception:
        raise Unreadable("result_t, result_a or stats is not an array of numbers") from None
    seconds = re.search(r"# *([0-9.eE+-]+)\s*$", one_liner) if isinstance(one_liner, str) else None
    about = {"program": THIS if "engine" in args else ORIGINAL, "model": args["model"], "seed": args.get("seed")}
    data = {"file": os.path.basename(args["data_file"])}
    return [{"args": args, "data": data, "seconds": {"total": seconds and seconds[1]}} | about | numbers]


def _known(value):
    """A flag's value as plain as it can be; what is none is its text."""
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value if isinstance(value, PLAIN) else str(value)[:200]


def read_txt(path):
    """What one of the original's .txt files says: baseline, `|`, the rows of R, an empty line, three summaries.

    Learner and data file come from the file's name; flags and seed are unknown. Raises Unreadable or OSError.
    """
    parts = _NAME.fullmatch(os.path.basename(path).removesuffix(".txt"))
    if not parts:
        raise Unreadable("foreign: not named like a result")
    lines = _read_bytes(path, MOST_BYTES).decode("utf-8", "replace").split("\n")
    try:
        empty = lines.index("")
        told = {"Final Accuracy": "RA", "Backward": "BTI", "Forward": "FWT"}
        stats = {told[line.split(":")[0]]: float(line.split(":")[1]) for line in lines[empty + 1 : empty + 4]}
        if lines[1] != "|" or len(stats) < len(told):
            raise ValueError
        rows = [[float(word) for word in line.split()] for line in (lines[0], *lines[2:empty])]
    except (ValueError, LookupError):
        raise Unreadable("half-written or foreign: not the accuracies that a run saves") from None
    numbers = {"stats": stats, "result_t": [0, *range(len(rows) - 1)], "result_a": rows}
    model, data = _split(parts["model"], parts["data"])
    return [{"program": TEXT, "model": model, "data": {"file": data}} | numbers]


def _split(model, data):
    """(learner, data file) of a name's parts: a learner's own name may have underscores.

    A learner whose file is not here is known by the data's name, which the original begins with mnist_.
    """
    words = f"{model}_{data}".split("_")
    for n in range(len(words) - 1, 1, -1):
        if os.path.isfile(os.path.join(MODELS, f"{'_'.join(words[:n])}.py")):
            return "_".join(words[:n]), "_".join(words[n:])
    if "mnist" in words[1:-1]:
        n = words.index("mnist", 1)
        return "_".join(words[:n]), "_".join(words[n:])
    return model, data


# of one run, the first of these that is there is read
READERS = {".json": read_json, PACK: read_pack, ".pt": read_pt, ".txt": read_txt}
PLAIN = (str, int, float, type(None))


# -- what they say of a run


def run_of(saved, name, shown):
    """The Run of a file's words, computed anew from result_t and result_a. Raises Unreadable.

    name, shown   of the run, and of the place where it is
    """
    if saved.get("format") != FORMAT:
        raise Unreadable(f"its format is {saved.get('format')!r:.60}, not {FORMAT!r}")
    if saved.get("status", "complete") != "complete":
        failure = f" ({_text(saved['failure'])})" if saved.get("failure") else ""
        raise Unreadable(f"an unfinished run: {_text(saved['status'])}{failure}")
    program = saved.get("program", THIS)
    if program not in (THIS, ORIGINAL, TEXT):
        raise Unreadable(f"program is {program!r:.60}, none that is known")
    data, model = _part(saved, "data", dict), _plain(saved, "model")
    seed = science = memory = None
    history = _history(saved.get("history", []))
    evaluated = _evaluations(saved)
    _check_stored(saved, evaluated, program)
    if program != TEXT:
        seed = saved.get("seed")
        if type(seed) is not int or abs(seed) > MOST_COUNT:
            raise Unreadable(f"seed is {seed!r:.60}, not a whole number of up to {len(str(MOST_COUNT))} digits")
        reads, left_out = _flags(saved, "science" if "science" in saved else "args"), NO_MATTER
        if "science" not in saved:
            left_out = left_out | _unread(model)
        science = {flag: plain(value) for flag, value in reads.items() if flag not in left_out and value is not None}
        if history:  # which says what the learner had learned, wherever it was
            science.pop("start_from", None)
        n_tasks = len(evaluated["baseline"]) + sum(run["n_tasks"] for run in history)
        whole = {flag: int(text) for flag, text in science.items() if re.fullmatch(r"\d{1,10}", text, re.ASCII)}
        memory = memory_size(model, whole, n_tasks)
    return Run(
        path=shown,
        name=name,
        program=program,
        model=model,
        data_file=_plain(data, "file"),
        identity=_text(data.get("identity")),
        science=science,
        memory=memory,
        seed=seed,
        history=history,
        **evaluated,
        **_earlier(saved.get("earlier")),
        seconds=as_float(_dict(saved.get("seconds")).get("total")),
        finished=_timestamp(saved.get("finished")) or 0.0,
        about=_about(saved, data),
    )


def plain(value):
    """The text of a flag's value, the same for 20 and 20.0, and for True and yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def _evaluations(saved):
    """The numbers of a Run: columns in order of presentation, for the figures at most about MOST_ROWS rows.

    Without examples_seen, evaluations count as equally far apart within a task.
    """
    result_t, result_a = _part(saved, "result_t", list), _accuracies(saved, "result_a", 2)
    if not all(type(t) is int for t in result_t):
        raise Unreadable("result_t is not a list of whole numbers")
    if len(result_t) > 1:
        result_t = [result_t[1], *result_t[1:]]  # the original calls row 0 task 0's, whichever task comes first
    try:
        found = metrics.summarise(result_t, result_a)
        seen = np.array(saved.get("examples_seen", range(len(result_t))), dtype=float)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unreadable(f"its evaluations do not fit each other: {error}") from None
    n_tasks, order = result_a.shape[1], found.order
    if len(order) < n_tasks:
        raise Unreadable(f"stopped after {len(order)} of {n_tasks} tasks")
    if seen.shape != (len(result_t),) or not np.isfinite(seen).all() or not (np.diff(seen) >= 0).all():
        raise Unreadable("its evaluations do not fit each other: examples_seen is not one rising number for each")
    current = np.array([order.index(t) for t in result_t])
    ends = np.append(np.flatnonzero(np.diff(current)), len(current) - 1)  # the last row of each task
    position = np.interp(seen, np.append(seen[0], seen[ends]), np.arange(n_tasks + 1))
    rows = np.linspace(0, len(current) - 1, min(MOST_ROWS, len(current))).round().astype(int)
    rows = np.unique(np.append(rows, ends))
    return {
        **{metric: float(getattr(found, metric)) for metric in metrics.NAMES},
        "matrix": found.matrix,
        "baseline": found.baseline,
        "position": position[rows],
        "accuracies": result_a[rows][:, order],
        "seen": found.seen[rows],
        **_alignment(saved.get("alignment"), rows, len(current), n_tasks),
        "order": order,
        "digest": hashlib.sha256(result_a.tobytes() + repr(result_t).encode()).hexdigest(),
    }


def _alignment(found, rows, n_evaluations, n_tasks):
    """What --alignment measured at these of the evaluations, and at the end between the last n_tasks tasks."""
    if found is None:
        return dict.fromkeys(("inner", "cosine", "cosines"))
    with suppress(TypeError, LookupError, ValueError, OverflowError):
        measured, latest = found["measured"], found["latest"]
        inner, cosine = (_measured([one[kind] for one in measured]) for kind in ("inner", "cosine"))
        cosines = _measured(latest["cosine"])
        fit = {inner.shape, cosine.shape} == {(n_evaluations, 2)} and cosines.shape == 2 * (len(latest["tasks"]),)
        if fit and len(cosines) >= n_tasks and not any((np.abs(it) > 1 + ROUNDED).any() for it in (cosine, cosines)):
            return {"inner": inner[rows], "cosine": cosine[rows], "cosines": cosines[-n_tasks:, -n_tasks:]}
    raise Unreadable(f"alignment is {found!r:.60}, not what is measured at each evaluation")


def _measured(rows):
    """Rows of numbers as an array, nan for None. Raises TypeError or ValueError where they are none, or too large."""
    values = np.array([[np.nan if value is None else value for value in row] for row in rows])
    if values.dtype.kind not in "fiu" or (np.abs(values) > MOST_MEASURED).any():
        raise ValueError
    return values.astype(float)


def _check_stored(saved, evaluated, program):
    """Raises Unreadable where a file's own summaries are not those of its evaluations."""
    order = evaluated.pop("order")
    told = _part(saved, "data", dict).get("task_order", order)
    if told != order:
        raise Unreadable(f"task_order is {told!r:.60}, but its evaluations go through the tasks as {order!r:.60}")
    if program == ORIGINAL and order != sorted(order):
        return  # whose summaries of shuffled tasks are wrong
    stored = _dict(saved.get("stats")) | {key: saved[key] for key in ("accuracy_matrix", "baseline") if key in saved}
    for key, value in stored.items():
        _check(key, value, evaluated.get("matrix" if key == "accuracy_matrix" else key))


def _check(key, value, ours):
    """Raises Unreadable where a file's own number or numbers are not ours but for rounding."""
    with suppress(ValueError, TypeError, OverflowError):
        if ours is None or np.shape(value) == np.shape(ours) and (abs(np.array(value) - ours) <= ROUNDED).all():
            return
    exactly = f"{value!r:.40}, they give {ours:.4f}" if np.ndim(ours) == 0 else "not theirs"
    raise Unreadable(f"contradicts its evaluations: {key} is {exactly}")


@cache
def _unread(name):
    """Names of the paper's flags that a learner, if it is one of ours, does not read."""
    import model  # slow: with torch

    about = model.read_all().get(model.ELSEWHERE.get(name, name))
    mine = {flag.name for flag in about.flags} if about else set()
    return {flag.name for flag in PAPER} - mine if mine else set()


def _earlier(earlier):
    """What became of the tasks that were learned before this run."""
    means = [None] if earlier is None else _accuracies(_dict(earlier), "result_a", 2).mean(1).tolist()
    found = {"before": means[0], "after": means[-1]}
    for key, value in found.items():
        _check(f"RA_{key}", _dict(earlier).get(f"RA_{key}", value), value)
    return found


def _history(history):
    kinds = {"model": str, "data": str, "data_file": str, "n_tasks": int}
    with suppress(TypeError, LookupError):
        found = tuple({key: run[key] for key in kinds} for run in history)
        typed = all(type(run[key]) is kind for run in found for key, kind in kinds.items())
        named = all(names.is_name(run["model"]) and names.is_name(run["data_file"]) for run in found)
        if typed and named and all(0 < run["n_tasks"] < MOST_RUNS for run in found):
            return found
    raise Unreadable(f"history is {history!r:.60}, not the runs before this one")


def _about(saved, data):
    host, cores = _dict(saved.get("host")), _dict(saved.get("host")).get("cores")
    notes = {_text(k): _measure(v) for k, v in _dict(saved.get("notes")).items()}
    parts = (_text(host.get("name")), _text(host.get("cpu")), f"{cores} cores" if isinstance(cores, int) else None)
    return {
        **{key: _text(saved.get(key)) for key in ("engine", "draws", "threads", "commit", "code")},
        "dirty": saved.get("dirty") is True,
        "versions": ", ".join(f"{_text(k)} {_text(v)}" for k, v in sorted(_dict(saved.get("versions")).items()))
        or None,
        "host": " · ".join(filter(None, parts)) or None,
        "origin": _text(data.get("origin")),
        "notes": {k: v for k, v in notes.items() if v is not None},
    }


# -- checks


def _read_bytes(path, most):
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > most or len(raw := file.read(most + 1)) > most:
            raise Unreadable(f"larger than {most >> 20} MiB")
    return raw


def _check_zip(path):
    """Raises Unreadable for a zip file that is not as torch.save writes it, and could grow when unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Unreadable("damaged: a broken zip archive") from None
    if any(it.compress_type != zipfile.ZIP_STORED for it in members):
        raise Unreadable("foreign: torch.save writes no compressed archives")
    if any(it.file_size > MOST_BYTES for it in members if it.filename.endswith(".pkl")):
        raise Unreadable(f"its pickle is larger than {MOST_BYTES >> 20} MiB")


def _is_pickle(path):
    """Whether a file begins like one of PyTorch before 1.6."""
    with open(path, "rb") as file:
        return file.read(1) == pickle.PROTO


def _part(saved, key, kind):
    value = saved.get(key)
    if not isinstance(value, kind):
        raise Unreadable(f"{key} is missing or not a {kind.__name__}")
    return value


def _dict(value):
    return value if isinstance(value, dict) else {}


def _text(value):
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value)[:200]


def _plain(saved, key):
    value = saved.get(key)
    if not names.is_name(value):
        raise Unreadable(f"{key} is {value!r:.60}, not a plain name: {names.RULE}")
    return value


def _flags(saved, key):
    flags = _part(saved, key, dict)
    for name, value in flags.items():
        if not _FLAG.fullmatch(name):
            raise Unreadable(f"{key} holds {name!r:.60}, which is no flag")
        if len(str(value)) > MOST_TEXT:
            raise Unreadable(f"the value of {name} in {key} is longer than {MOST_TEXT} characters")
    return flags


def _accuracies(saved, key, n_axes):
    try:
        values = np.array(saved.get(key))
    except ValueError:
        raise Unreadable(f"{key} has rows of different lengths") from None
    if values.dtype.kind not in "fiu" or values.ndim != n_axes or not values.size:
        raise Unreadable(f"{key} is no array of numbers with {n_axes} axes")
    if not ((values >= 0) & (values <= 1)).all():
        raise Unreadable(f"{key} holds values that are no accuracies in 0..1")
    return values.astype(np.float32)


def as_float(value):
    """A number from 0 on, or text of one, as a float; None for anything else."""
    with suppress(TypeError, ValueError, OverflowError):
        return float(value) if 0 <= float(value) < 1e12 and value is not True else None


def _measure(value):
    """A finite number as a float; None for anything else."""
    if type(value) in (int, float):
        with suppress(OverflowError):
            return float(value) if abs(float(value)) < MOST_MEASURED else None


def _date(name, path):
    """When a run finished, by its name or else its file's age, as .json has it; None where neither tells a date."""
    for told in (lambda: datetime.strptime(_NAME.fullmatch(name)["date"], "%Y_%m_%d_%H_%M_%S"),
                 lambda: datetime.fromtimestamp(os.path.getmtime(path))):  # fmt: skip
        with suppress(ValueError, TypeError, OverflowError, OSError):
            text = told().astimezone(timezone.utc).isoformat()
            if _timestamp(text) is not None:
                return text
    return None


def _timestamp(text):
    """Seconds since 1970 of a date, or None where it is none that `date` can show."""
    with suppress(TypeError, ValueError, OverflowError, OSError):
        found = datetime.fromisoformat(text).timestamp()
        return found if date(found) else None


def date(timestamp):
    """UTC, to the minute."""
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d %H:%M")
