"""What the learner of a finished run knows, so that a later run goes on with further tasks: `<name>.state`.

Its weights, memories and counters. The tasks of the later run are numbered after those that it knows.
"""

from pathlib import Path

from disk import safe
from errors import UserError
from tasks.taskset import MOST_OUTPUTS, MOST_TASKS

FORMAT = "mer-state/2"
ENDING = ".state"
KINDS = {"flags": dict, "sizes": dict, "class_ranges": list | None, "learner": dict}
# flags on which the layout of a learner's state depends
FLAGS = ("model", "n_hiddens", "n_layers", "memories", "n_memories")
MOST = {"n_tasks": MOST_TASKS, "n_inputs": 1 << 32, "n_outputs": MOST_OUTPUTS, "first_free_slot": 1 << 28}


def dump(learner, args):
    """The bytes of a .state file."""
    return safe.dump(
        {
            "format": FORMAT,
            "flags": {name: value for name, value in vars(args).items() if name in FLAGS},
            "sizes": {name: getattr(learner, name) for name in MOST},
            "class_ranges": learner.args.class_ranges,
            "learner": learner.state(),
        }
    )


def load(result, args, tasks):
    """The content of the .state beside a finished run's .pt.

    Raises UserError where there is none, or it is of a learner with other flags or for other data than these tasks.
    """
    path = Path(result)
    path = path.with_name(f"{path.stem}{ENDING}") if path.name else path
    try:
        content = safe.load(path, {"format": str} | KINDS)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}, not {FORMAT!r}")
        if not safe.are_plain(content["flags"]):
            raise ValueError("its flags are none")
        _check_sizes(content["sizes"], content["class_ranges"])
    except FileNotFoundError as error:
        raise UserError(
            f"--start_from {result}: {path.name} is not beside it; give the .pt of a run that kept its state"
        ) from error
    except OSError as error:
        raise UserError(
            f"--start_from {result}: {path} cannot be read ({error.strerror}); give a file that can"
        ) from error
    except ValueError as error:
        raise UserError(f"--start_from {result}: {path} is no learner's state ({error}); run it again") from error
    flags, sizes = vars(args), content["sizes"]
    known = content["flags"].items()
    changes = [f"--{name} was {value}, now {flags.get(name)}" for name, value in known if value != flags.get(name)]
    if sizes["n_inputs"] != tasks.n_inputs:
        changes.append(f"its tasks had {sizes['n_inputs']} inputs, these have {tasks.n_inputs}")
    if sizes["n_outputs"] < tasks.n_outputs:
        changes.append(f"it knows {sizes['n_outputs']} classes, these tasks have {tasks.n_outputs}")
    if (content["class_ranges"] is None) != (tasks.class_ranges is None):
        changes.append("only one of them has classes that belong to tasks")
    if changes:
        raise UserError(f"--start_from {result}: the learner does not fit ({'; '.join(changes)}); give what it had")
    return content


def _check_sizes(sizes, class_ranges):
    for name, most in MOST.items():
        if not isinstance(sizes.get(name), int) or not 1 <= sizes[name] <= most:
            raise ValueError(f"its {name} is no number from 1 to {most}")
    for pair in class_ranges or []:
        if not isinstance(pair, tuple) or len(pair) != 2 or not 0 <= int(pair[0]) < int(pair[1]) <= sizes["n_outputs"]:
            raise ValueError("its class ranges are none")
    if class_ranges is not None and len(class_ranges) != sizes["n_tasks"]:
        raise ValueError("its class ranges are not one for each task")


def hand_over(result, content, learner):
    """Gives a new learner, built for more tasks, what an earlier one knew; its draws go on as its own seed says.

    Raises UserError where it does not fit.
    """
    n_known, most = content["sizes"]["n_tasks"], content["sizes"]["first_free_slot"]
    if learner.first_free_slot != most:
        raise UserError(f"--start_from {result}: its minibatches had at most {most} examples; give --batch_size {most}")
    try:
        fits = _networks_fit(content["learner"]["parts"], learner)
        if fits:
            learner.load_state(content["learner"] | {"draws": learner.engine.draws.getstate()})
    except safe.DAMAGED as error:
        reason = safe.one_line(error)
        raise UserError(f"--start_from {result}: its state is damaged ({reason}); run it again") from error
    if not fits:
        raise UserError(
            f"--start_from {result}: the networks of {content['flags']['model']} depend on the number of tasks, so it "
            f"cannot go on from {n_known} to {learner.n_tasks}; choose another --model"
        )


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
