"""Reads whatever runs lie in a results folder, ours and the original program's, and names what it cannot count.

Nothing in the folder is trusted. A file is read at most to a limit, as plain data (JSON, `weights_only` pickles, text);
one that is damaged, foreign or half-written becomes a `Skipped` with the reason, and nothing of it is counted.
"""

import argparse
import json
import os
import re
import stat
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

FORMAT = "mer-result/1"
MOST_BYTES = 64 * 2**20  # of a .json, a .txt, the pickle inside a .pt, and a .pt that cannot be mapped into memory
MOST_ROWS = 400  # evaluations kept of a run: more than a figure can show
SUFFIXES = (".json", ".pt", ".txt")  # of one run, the first that is there is read

# folders that hold no runs to report: those of this program, and what tuning tried
NO_RESULTS = ("bench", "equivalence", "logs", "records", "report", "tuning")

METRICS = ("RA", "LA", "BTI", "FWT")
THIS, ORIGINAL, TEXT = "this one", "the original", "unknown: only a .txt is left"  # who ran it

_NAME = re.compile(r"(?P<model>[A-Za-z0-9.-]+)_(?P<data>.+)_(?P<date>\d{4}(_\d\d){5})_[0-9a-f]{32}")
_PLAIN_NAME = re.compile(r"\w[\w.+ -]{0,99}")
_FLAG = re.compile(r"\w{1,60}")


class Unreadable(Exception):
    """A file that is no complete run; the message says why."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not counted; path is relative to the results folder."""

    path: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One finished run; T tasks in order of presentation, E evaluations, accuracies in 0..1.

    args        {flag: value}, or None where only a .txt is left
    seed        None where unknown
    RA..FWT     the paper's summaries (see metrics)
    seconds     wall time of learning and evaluation, without reading the data; None where unknown
    matrix      (T, T)  R[i, j] = accuracy on task j after learning task i
    baseline    (T,)    accuracy of the untrained net
    position    (E,)    how many tasks have been learned at each evaluation; 3.5 is half-way through the fourth
    current     (E,)    the task being learned at each evaluation
    accuracies  (E, T)
    about       where it comes from: engine, draws, threads, commit, dirty, code, versions, host, started, data, notes
    """

    path: str
    name: str
    program: str
    model: str
    data_file: str
    identity: str | None
    args: dict | None
    seed: int | None
    RA: float
    LA: float
    BTI: float
    FWT: float
    seconds: float | None
    finished: float
    matrix: np.ndarray
    baseline: np.ndarray
    position: np.ndarray
    current: np.ndarray
    accuracies: np.ndarray
    about: dict = field(default_factory=dict)

    @property
    def n_tasks(self):
        return len(self.baseline)

    def seen(self):
        """(E,) mean accuracy over the tasks seen so far, the current one included."""
        sums = np.cumsum(self.accuracies, axis=1)[np.arange(len(self.current)), self.current]
        return sums / (self.current + 1)


def read_folder(folder):
    """([Run], [Skipped]) of all below folder, in order of path. Folders behind symbolic links are not entered."""
    folder = Path(folder)
    runs, skipped = [], []

    def skip(path, reason):
        skipped.append(Skipped(os.path.relpath(path, folder), reason))

    def skip_folder(error):
        skip(error.filename, f"cannot be listed: {error.strerror}")

    for here, folders, files in os.walk(folder, onerror=skip_folder):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in NO_RESULTS))
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                skip(os.path.join(here, name), "a symbolic link to a folder: not followed")
            elif name.endswith(SUFFIXES):
                skip(os.path.join(here, name), "a folder, not a file")
        for name, suffix in _best_of_each_run(files):
            path = os.path.join(here, name + suffix)
            try:
                runs.append(READERS[suffix](path, name, os.path.relpath(path, folder)))
            except Unreadable as error:
                left = suffix == ".pt" and name + ".txt" in files
                skip(path, f"{error}{'; remove it to have its .txt read' if left else ''}")
            except Exception as error:  # no file, however odd, may cost the report of the others
                skip(path, f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}")
    return sorted(runs, key=lambda run: run.path), sorted(skipped, key=lambda it: it.path)


def _best_of_each_run(files):
    found = {}
    for file in files:
        for rank, suffix in enumerate(SUFFIXES):
            if file.endswith(suffix):
                name = file[: -len(suffix)]
                found[name] = min(found.get(name, rank), rank)
    return [(name, SUFFIXES[rank]) for name, rank in sorted(found.items())]


# -- our .json


def read_json(path, name, shown):
    """The Run in one of our .json files. Raises Unreadable or OSError."""
    raw = _read_bytes(path)
    if FORMAT.split("/")[0].encode() not in raw:  # saves parsing large foreign files
        raise Unreadable("foreign or half-written: not a result of this program" if raw.strip() else "empty")
    try:
        saved = json.loads(raw)
    except RecursionError:
        raise Unreadable("foreign: nested too deeply") from None
    except ValueError:
        raise Unreadable("half-written or damaged: not valid JSON") from None
    found = saved.get("format") if isinstance(saved, dict) else None
    if found != FORMAT:
        raise Unreadable(f"its format is {found!r:.60}, not {FORMAT!r}")
    if saved.get("status", "complete") != "complete":
        raise Unreadable(
            f"an unfinished run: {_text(saved['status'])}"
            + (f" ({_text(saved['failure'])})" if saved.get("failure") else "")
        )
    data = _part(saved, "data", dict)
    args = _flags(_part(saved, "args", dict))
    stats = _part(saved, "stats", dict)
    numbers = {metric: _number(stats, metric, 0 if metric in ("RA", "LA") else -1, 1) for metric in METRICS}
    matrix = _accuracies(saved, "accuracy_matrix", 2)
    baseline = _accuracies(saved, "baseline", 1)
    order = _part(data, "task_order", list)
    n_tasks = len(baseline)
    if len(matrix) < n_tasks:
        raise Unreadable(f"stopped after {len(matrix)} of {n_tasks} tasks")
    if matrix.shape != (n_tasks, n_tasks) or _sorted(order) != list(range(n_tasks)):
        raise Unreadable("accuracy_matrix, baseline and task_order do not fit each other")
    if abs(matrix[-1].mean() - numbers["RA"]) > 1e-3:
        raise Unreadable(f"RA {numbers['RA']:.4f} is not the mean {matrix[-1].mean():.4f} of its last accuracies")
    seconds = _part(saved, "seconds", dict)
    evaluations = _evaluations(
        _part(saved, "result_t", list),
        _accuracies(saved, "result_a", 2),
        order,
        _part(saved, "examples_seen", list),
    )
    host = _dict(saved.get("host"))
    seed = saved.get("seed")
    if type(seed) is not int:
        raise Unreadable(f"seed is {seed!r:.60}, not a whole number")
    return Run(
        path=shown,
        name=name,
        program=THIS,
        model=_plain(saved, "model"),
        data_file=_plain(data, "file"),
        identity=_text(data.get("identity")),
        args=args,
        seed=seed,
        **numbers,
        seconds=_number(seconds, "total", 0),
        finished=_timestamp(saved.get("finished"), path),
        matrix=matrix,
        baseline=baseline,
        **evaluations,
        about={
            "engine": _text(saved.get("engine")),
            "draws": _text(saved.get("draws")),
            "threads": _text(saved.get("threads")),
            "commit": _text(saved.get("commit")),
            "code": _text(saved.get("code")),
            "dirty": saved.get("dirty") is True,
            "versions": {_text(k): _text(v) for k, v in _dict(saved.get("versions")).items()},
            "host": " · ".join(
                filter(None, (_text(host.get("name")), _text(host.get("cpu")), _cores(host.get("cores"))))
            )
            or None,
            "started": _text(saved.get("started")),
            "origin": _text(data.get("origin")),
            "notes": {_text(k): v for k, v in _dict(saved.get("notes")).items() if type(v) in (int, float)},
        },
    )


# -- the original's .pt and .txt


def read_pt(path, name, shown):
    """The Run in one of the original's .pt files: (result_t, result_a, state_dict, stats, one_liner, args).

    Loaded as plain tensors and settings: a pickle that asks for anything else is refused, unrun. Weights are mapped,
    not read. Raises Unreadable or OSError.
    """
    _check_regular(path)
    mapped = _check_zip(path) if zipfile.is_zipfile(path) else False
    if not mapped and os.path.getsize(path) > MOST_BYTES:
        raise Unreadable(f"larger than {MOST_BYTES >> 20} MiB and not in a format that can be mapped into memory")
    import torch  # slow to import, and only these files need it

    from disk.safe import check_pickles, check_tensors

    try:
        with open(path, "rb") as file:
            check_pickles(file, also={"argparse Namespace"})
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        check_tensors(saved, os.path.getsize(path))
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes of the loader
        if re.search(r"never run|unsupported (global|class)|allowed global|unrecognized function", str(error), re.I):
            raise Unreadable("refused: holds more than tensors and settings, and could run code") from None
        raise Unreadable(f"damaged or foreign: {type(error).__name__}") from None
    if not isinstance(saved, tuple) or len(saved) != 6 or not isinstance(saved[5], argparse.Namespace):
        raise Unreadable("not the six parts that a run saves")
    result_t, result_a, _, _, one_liner, args = saved
    try:
        result_t = torch.as_tensor(result_t).long().flatten().tolist()
        result_a = torch.as_tensor(result_a).float().clone().numpy()  # a copy, lest the file stay mapped
    except Exception:
        raise Unreadable("result_t or result_a is not an array of numbers") from None
    args = _flags(vars(args))
    seconds = re.search(r"# *([0-9.eE+-]+)\s*$", one_liner) if isinstance(one_liner, str) else None
    if type(args.get("seed")) is not int:
        raise Unreadable(f"seed is {args.get('seed')!r:.60}, not a whole number")
    return Run(
        path=shown,
        name=name,
        program=THIS if "engine" in args else ORIGINAL,
        model=_plain(args, "model"),
        data_file=_plain(args, "data_file"),
        args=args,
        seed=args["seed"],
        seconds=_seconds(seconds and seconds[1]),
        **_from_evaluations(result_t, result_a),
        **_from_name(name, path),
    )


def read_txt(path, name, shown):
    """The Run in one of the original's .txt files: baseline, `|`, the rows of R, an empty line, three summaries.

    Learner and data file come from the file's name; flags and seed are unknown. Raises Unreadable or OSError.
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise Unreadable("foreign: not named like a result")
    lines = _read_bytes(path).decode("utf-8", "replace").split("\n")
    try:
        empty = lines.index("")
        if (
            lines[1] != "|"
            or not re.match(r"Final Accuracy: .*\d", lines[empty + 1])
            or not re.match(r"Forward: .*\d", lines[empty + 3])
        ):
            raise ValueError
        rows = np.array(
            [[float(word) for word in line.split()] for line in (lines[0], *lines[2:empty])], dtype=np.float32
        )
        if rows.ndim != 2:
            raise ValueError
    except (ValueError, IndexError):
        raise Unreadable("half-written or foreign: not the accuracies that a run saves") from None
    return Run(
        path=shown,
        name=name,
        program=TEXT,
        model=_plain(parts.groupdict(), "model"),
        data_file=_plain(parts.groupdict(), "data"),
        args=None,
        seed=None,
        seconds=None,
        **_from_evaluations([0, *range(len(rows) - 1)], rows),
        **_from_name(name, path),
    )


READERS = {".json": read_json, ".pt": read_pt, ".txt": read_txt}


def _from_evaluations(result_t, result_a):
    _check_accuracies(result_a, "result_a", 2)
    from metrics import summarise

    if len(result_t) > 1:
        result_t = [result_t[1], *result_t[1:]]  # the original calls row 0 task 0's, whichever task comes first
    try:
        metrics = summarise(result_t, result_a)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    n_tasks = result_a.shape[1]
    if len(metrics.order) < n_tasks:
        raise Unreadable(f"stopped after {len(metrics.order)} of {n_tasks} tasks")
    return {
        **{metric: float(getattr(metrics, metric)) for metric in METRICS},
        "matrix": metrics.matrix.numpy(),
        "baseline": metrics.baseline.numpy(),
        **_evaluations(result_t, result_a, metrics.order),
    }


def _evaluations(result_t, result_a, order, examples_seen=None):
    """position, current and accuracies of a Run: columns in order of presentation, at most about MOST_ROWS rows.

    Without examples_seen, evaluations count as equally far apart within a task.
    """
    n_tasks = len(order)
    if result_a.shape != (len(result_t), n_tasks) or examples_seen is not None and len(examples_seen) != len(result_t):
        raise Unreadable("result_t, result_a and examples_seen do not fit each other")
    rank = {task: place for place, task in enumerate(order)}
    if len(result_t) > 1:
        result_t = [result_t[1], *result_t[1:]]
    try:
        current = np.array([rank[task] for task in result_t])
        seen = np.array(range(len(current)) if examples_seen is None else examples_seen, dtype=float)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Unreadable("result_t or examples_seen is not a list of whole numbers") from None
    steps = np.diff(current)
    if (
        not np.isin(steps, (0, 1)).all()
        or current[0] != 0
        or current[-1] != n_tasks - 1
        or not (np.diff(seen) >= 0).all()
    ):
        raise Unreadable("result_t and examples_seen do not run through the tasks in order")
    ends = np.append(np.flatnonzero(steps), len(current) - 1)  # the last row of each task
    position = np.interp(seen, np.append(seen[0], seen[ends]), np.arange(n_tasks + 1))
    kept = np.unique(
        np.concatenate((np.linspace(0, len(current) - 1, min(MOST_ROWS, len(current))).round().astype(int), ends))
    )
    return {"position": position[kept], "current": current[kept], "accuracies": result_a[kept][:, order]}


def _from_name(name, path):
    parts = _NAME.fullmatch(name)
    date = None
    if parts:
        try:
            date = datetime.strptime(parts["date"], "%Y_%m_%d_%H_%M_%S").timestamp()
        except ValueError:
            pass
    return {"identity": None, "finished": os.path.getmtime(path) if date is None else date}


# -- checks


def _check_regular(path):
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("not a regular file")


def _read_bytes(path):
    _check_regular(path)
    with open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise Unreadable(f"larger than {MOST_BYTES >> 20} MiB")
    return raw


def _check_zip(path):
    """True for a zip file as torch.save writes it; raises Unreadable for one that could grow when unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Unreadable("damaged: a broken zip archive") from None
    if any(it.compress_type != zipfile.ZIP_STORED for it in members):
        raise Unreadable("foreign: torch.save writes no compressed archives")
    if any(it.file_size > MOST_BYTES for it in members if it.filename.endswith(".pkl")):
        raise Unreadable(f"its pickle is larger than {MOST_BYTES >> 20} MiB")
    return True


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
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        raise Unreadable(f"{key} is {value!r:.60}, not a plain name")
    return value


def _flags(args):
    for name, value in args.items():
        if not isinstance(name, str) or not _FLAG.fullmatch(name) or len(str(value)) > 1000:
            raise Unreadable(f"args holds {name!r:.60}, which is no flag")
    return dict(args)


def _number(saved, key, least, most=1e12):
    value = saved.get(key)
    if type(value) not in (int, float) or not least <= value <= most:
        raise Unreadable(f"{key} is {value!r:.60}, not a number in {least}..{most}")
    return float(value)


def _accuracies(saved, key, n_axes):
    try:
        values = np.asarray(saved.get(key))
    except ValueError:
        raise Unreadable(f"{key} has rows of different lengths") from None
    return _check_accuracies(values, key, n_axes)


def _check_accuracies(values, key, n_axes):
    if values.dtype.kind not in "fiu" or values.ndim != n_axes or not values.size:
        raise Unreadable(f"{key} is no array of numbers with {n_axes} axes")
    if not ((values >= 0) & (values <= 1)).all():
        raise Unreadable(f"{key} holds values that are no accuracies in 0..1")
    return values.astype(np.float32)


def _sorted(values):
    return sorted(values) if all(type(value) is int for value in values) else None


def _seconds(text):
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None


def _cores(value):
    return f"{value} cores" if isinstance(value, int) else None


def _timestamp(text, path):
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return os.path.getmtime(path)


def date(timestamp):
    """UTC, to the minute."""
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d %H:%M")
