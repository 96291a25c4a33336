"""Results in Python: of a run that has just ended, and of the runs whose files a folder holds."""

import json
import warnings
from pathlib import Path

import numpy as np

import metrics
from errors import UserError
from run import FORMAT, settings


class Result:
    """What a run has shown.

    about          all that its .json says (run.saving.describe), a dictionary
    args           {name: value} of its flags;  status: "complete", or why it ended early
    result_t       (E,) the task being learned at each evaluation
    result_a       (E, T) the accuracy on each task's test set then, 0..1
    examples_seen  (E,) the examples learned before it
    metrics        its accuracy matrix (metrics.Metrics), whose summaries are attributes here, as floats:
                   RA, LA, BTI, FWT, AAA, forgetting
    seconds        that it took, in all
    path           its files' name, without ending; None where nothing was saved
    learner        as it was at the end, in `experiment`'s; None in what is loaded

    Raises one of several errors where `about` is not a run's.
    """

    def __init__(self, about, path=None, learner=None):
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r:.40}, not {FORMAT!r}")
        self.about, self.path, self.learner = about, path, learner
        self.name, self.status, self.args = str(about["name"]), str(about["status"]), dict(about["args"])
        self.result_t, self.examples_seen = _whole(about["result_t"]), _whole(about["examples_seen"])
        self.result_a = np.array(about["result_a"], dtype=np.float64)
        self.metrics = metrics.summarise(self.result_t, self.result_a.tolist())  # in float32, as the run itself does
        if self.examples_seen.shape != self.result_t.shape or not np.all((self.result_a >= 0) & (self.result_a <= 1)):
            raise ValueError("its evaluations are none")
        self.seconds = float(about["seconds"]["total"])
        for name in metrics.NAMES:
            setattr(self, name, float(getattr(self.metrics, name)))

    def __repr__(self):
        of = f"{self.args['model']} on {self.args['data_file']}, seed {self.args['seed']}"
        ended = "" if self.status == "complete" else f", {self.status}"
        return f"<{of}{ended}: RA {self.RA:.3f}, LA {self.LA:.3f}, BTI {self.BTI:+.3f}, {self.seconds:.1f} s>"


def _whole(numbers):
    found = np.array(numbers)
    if found.ndim != 1 or found.dtype.kind != "i":
        raise ValueError(f"{numbers!r:.60} are no whole numbers")
    return found


class Results(list):
    """Several `Result`s, as tables of pandas too (UserError where that is not installed)."""

    def frame(self):
        """A DataFrame with a row for each run: name, status, its flags, the summaries of metrics, seconds."""
        rows = []
        for it in self:
            flags = {name: settings.as_text(value) if _nested(value) else value for name, value in it.args.items()}
            summaries = {name: getattr(it, name) for name in metrics.NAMES}
            rows.append({"name": it.name, "status": it.status} | flags | summaries | {"seconds": it.seconds})
        return _pandas().DataFrame(rows)

    def curves(self):
        """A DataFrame with a row for each run, evaluation and task: name, model, data_file, seed, examples_seen,
        learning (the task being learned), task, accuracy on it.
        """
        pandas, parts = _pandas(), []
        for it in self:
            n_evaluations, n_tasks = it.result_a.shape
            columns = {name: it.args[name] for name in ("model", "data_file", "seed")} | {
                "examples_seen": np.repeat(it.examples_seen, n_tasks),
                "learning": np.repeat(it.result_t, n_tasks),
                "task": np.tile(np.arange(n_tasks), n_evaluations),
                "accuracy": it.result_a.ravel(),
            }
            parts.append(pandas.DataFrame({"name": it.name} | columns))
        return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()


def _nested(value):
    return isinstance(value, list | tuple)


def _pandas():
    try:
        import pandas
    except ImportError as error:
        raise UserError("tables of results need a package: pip install pandas") from error
    return pandas


def load_results(folder="results/"):
    """The Results of all runs whose files lie in a folder or below it, in the order of their paths.

    Reads the .json of each run, and executes nothing. A damaged one is left out, with a warning that names it.
    Raises UserError where there is no such folder.
    """
    folder, found = Path(folder), Results()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that main.py or experiment(save_path=…) saved to")
    for path in sorted(folder.rglob("*.json")):
        try:
            about = json.loads(path.read_bytes())
            if isinstance(about, dict) and "result_a" in about:  # and no other JSON that lies there
                found.append(Result(about, path.with_suffix("")))
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, RuntimeError) as error:
            warnings.warn(f"{path} is left out: {type(error).__name__}: {error}", stacklevel=2)
    return found
