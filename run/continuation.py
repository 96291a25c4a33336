"""What the learner of a finished run knows, so that a later run goes on with further tasks: `<name>.state`.

Its weights, memories and counters, and which tasks it has learned. The tasks of the later run are numbered after those.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from disk import safe
from errors import UserError
from model.foreign import Foreign
from run.settings import class_ranges
from tasks.files import load_tasks
from tasks.taskset import MOST_OUTPUTS, MOST_TASKS

FORMAT = "mer-state/3"
ENDING = ".state"
KINDS = {"shape": dict, "sizes": dict, "class_ranges": list | None, "learner": dict, "history": list}
MOST = {"n_tasks": MOST_TASKS, "n_inputs": 1 << 32, "n_outputs": MOST_OUTPUTS, "first_free_slot": 1 << 28}
# of a run that is over: its learner, its flags, its data and where they were
OF_A_RUN = {
    "model": str,
    "seed": int,
    "data": str,
    "data_path": str,
    "data_file": str,
    "data_seed": int,
    "n_tasks": int,
}


def dump(life):
    """The bytes of a .state file."""
    settings, learner = life.settings, life.experience.learner
    run = {name: getattr(settings, name) for name in ("model", "seed", "data_path", "data_file", "data_seed")}
    run |= {"data": life.tasks.identity, "n_tasks": len(life.tasks.tasks)}
    return safe.dump(
        {
            "format": FORMAT,
            "shape": settings.shape(),
            "sizes": {name: getattr(learner, name) for name in MOST},
            "class_ranges": learner.args.class_ranges,
            "history": [*life.history, run],
            "learner": learner.state(),
        }
    )


@dataclass(frozen=True)
class Before:
    """What an earlier run's learner knows.

    source            the .pt that --start_from names
    history           the runs that it has learned in, the first one first: {"model", "data", "n_tasks", …}
    n_tasks, n_outputs, class_ranges   of all of its tasks
    minibatch_slots   the most examples that it got at once
    learner           the learner's state
    """

    source: str
    history: list
    n_tasks: int
    n_outputs: int
    class_ranges: list | None
    minibatch_slots: int
    learner: dict

    def with_classes_of(self, tasks):
        """What all tasks together say of themselves: image_shape and class_ranges."""
        ranges = self.class_ranges and self.class_ranges + tasks.class_ranges
        return SimpleNamespace(image_shape=tasks.image_shape, class_ranges=ranges)

    def hand_over(self, learner):
        """Gives a new learner, built for more tasks, what is known; its draws go on as its own seed says.

        Raises UserError where it does not fit.
        """
        if isinstance(learner, Foreign):
            self._hand_over_attributes(learner)
            return
        if learner.first_free_slot != self.minibatch_slots:
            most = self.minibatch_slots
            raise UserError(
                f"--start_from {self.source}: its minibatches had at most {most} examples; give --batch_size {most}"
            )
        try:
            fits = _networks_fit(self.learner["parts"], learner)
            if fits:
                learner.load_state(self.learner | {"draws": learner.engine.draws.getstate()})
        except safe.DAMAGED as error:
            reason = safe.one_line(error)
            raise UserError(f"--start_from {self.source}: its state is damaged ({reason}); run it again") from error
        if not fits:
            raise UserError(
                f"--start_from {self.source}: the networks of {self.history[-1]['model']} depend on the number of "
                f"tasks, so it cannot go on from {self.n_tasks} to {learner.n_tasks}; choose another --model"
            )

    def _hand_over_attributes(self, learner):
        try:
            learner.go_on_with_more_tasks(self.learner, self.n_tasks)
        except safe.DAMAGED as error:
            raise UserError(
                f"--start_from {self.source}: {learner.name} cannot go on from {self.n_tasks} to {learner.n_tasks} "
                f"tasks ({safe.one_line(error)}); choose another --model"
            ) from error


def load(settings, tasks):
    """The Before in the .state beside the .pt that --start_from names.

    Raises UserError where there is none, or it is of a learner with another shape or for other data than these tasks.
    """
    result = settings.start_from
    path = Path(result)
    path = path.with_name(f"{path.stem}{ENDING}") if path.name else path
    try:
        content = safe.load(path, {"format": str} | KINDS)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}, not {FORMAT!r}")
        if not safe.are_plain(content["shape"]):
            raise ValueError("its flags are none")
        _check_sizes(content["sizes"], content["class_ranges"])
        _check_history(content["history"], content["sizes"]["n_tasks"])
    except FileNotFoundError as error:
        raise UserError(
            f"--start_from {result}: {path.name} is not beside it{_why_no_state(path)}; give the .pt of a run that "
            "kept its state"
        ) from error
    except OSError as error:
        raise UserError(
            f"--start_from {result}: {path} cannot be read ({error.strerror}); give a file that can"
        ) from error
    except ValueError as error:
        raise UserError(f"--start_from {result}: {path} is no learner's state ({error}); run it again") from error
    shape, sizes = settings.shape(), content["sizes"]
    changes = [
        f"--{name} was {value}, now {shape[name]}"
        for name, value in content["shape"].items()
        if name in shape and value != shape[name]
    ]
    if sizes["n_inputs"] != tasks.n_inputs:
        changes.append(f"its tasks had {sizes['n_inputs']} inputs, these have {tasks.n_inputs}")
    if sizes["n_outputs"] < tasks.n_outputs:
        changes.append(f"it knows {sizes['n_outputs']} classes, these tasks have {tasks.n_outputs}")
    if (content["class_ranges"] is None) != (class_ranges(settings, tasks) is None):
        changes.append("only one of them has classes that belong to tasks")
    if changes:
        raise UserError(f"--start_from {result}: the learner does not fit ({'; '.join(changes)}); give what it had")
    return Before(
        source=result,
        history=content["history"],
        n_tasks=sizes["n_tasks"],
        n_outputs=sizes["n_outputs"],
        class_ranges=content["class_ranges"],
        minibatch_slots=sizes["first_free_slot"],
        learner=content["learner"],
    )


def _why_no_state(path):
    """What the .json of a run says of the .state that is not there, in brackets, or nothing."""
    try:
        reason = json.loads(path.with_suffix(".json").read_bytes())["no_state"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f" ({reason})"


def earlier_tasks(before, settings):
    """({number: Task}, remarks): the tasks that were learned before, where their data are found, and what is not.

    A run's data are looked for where they were then, and in --with_tasks_of. Raises UserError where that is no data of
    any run before.
    """
    given = None
    if settings.with_tasks_of is not None:
        folder, name = os.path.split(settings.with_tasks_of)
        try:
            given = load_tasks(folder or settings.data_path, name, settings.data_seed, settings.mnist)
        except UserError as error:
            raise UserError(f"--with_tasks_of {settings.with_tasks_of}: {error}") from error
        if given.identity not in [run["data"] for run in before.history]:
            raise UserError(
                f"--with_tasks_of {settings.with_tasks_of}: the learner of {before.source} has not learned these "
                f"tasks; it learned {', '.join(run['data_file'] for run in before.history)}"
            )
    found, remarks, first = {}, [], 0
    for run in before.history:
        tasks = given if given and given.identity == run["data"] else _find(run, settings.mnist)
        if tasks:
            found |= {first + t: task for t, task in enumerate(tasks.tasks)}
        else:
            remarks.append(
                f"note: what is forgotten of {run['data_file']}, learned before, is not seen: no such tasks in "
                f"{run['data_path']}; give their data file: --with_tasks_of"
            )
        first += run["n_tasks"]
    return found, remarks


def _find(run, mnist_path):
    """The TaskSet of a run before, or None; built from the IDX files that it was built from, or that are in use now."""
    for path in dict.fromkeys((None, mnist_path)):
        with suppress(UserError):
            tasks = load_tasks(run["data_path"], run["data_file"], run["data_seed"], path)
            if tasks.identity == run["data"]:
                return tasks
    return None


def _check_history(history, n_tasks):
    for run in history:
        if not isinstance(run, dict) or {name: type(value) for name, value in run.items()} != OF_A_RUN:
            raise ValueError("its history is none")
    if not history or sum(run["n_tasks"] for run in history) != n_tasks or min(run["n_tasks"] for run in history) < 1:
        raise ValueError(f"its history is not of {n_tasks} tasks")


def _check_sizes(sizes, class_ranges):
    for name, most in MOST.items():
        if not isinstance(sizes.get(name), int) or not 1 <= sizes[name] <= most:
            raise ValueError(f"its {name} is no number from 1 to {most}")
    for pair in class_ranges or []:
        if not isinstance(pair, tuple) or len(pair) != 2 or not 0 <= int(pair[0]) < int(pair[1]) <= sizes["n_outputs"]:
            raise ValueError("its class ranges are none")
    if class_ranges is not None and len(class_ranges) != sizes["n_tasks"]:
        raise ValueError("its class ranges are not one for each task")


def _networks_fit(parts, learner):
    """Whether the learner has the same networks, of the same shapes; one may have more weights, for further tasks."""
    networks = learner.named_networks()
    if not networks.keys() <= parts.keys():
        return False
    return all(
        parts[prefix]["weights"].get(name, value).shape == value.shape
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    )
