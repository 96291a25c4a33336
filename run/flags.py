"""The flags of a run: everything on the command line that no learner reads. (model.flags: what learners read)"""

import argparse

from model.flags import CHANCE, DATA, DRAWS, ENGINES, FREE, PLACE, SHAPE, Flag, integer, nonempty, yes_no

MOST_SEED = 2**32 - 1  # what numpy.random.seed takes
MOST_THREADS = 1024
AUTO = "auto"
SCENARIOS = "task", "class"


def text(word):
    """Parser of anything."""
    return word


text.domain = "text"


def interval(word):
    """Parser of how often: 500 (minibatches), 60s (seconds), never."""
    if word == "never":
        return None
    number, unit = (word[:-1], "seconds") if word.endswith("s") else (word, "minibatches")
    try:
        n = int(number) if number.isdecimal() else 0
    except ValueError:  # thousands of digits
        n = 0
    if n < 1:
        raise argparse.ArgumentTypeError(
            f"{word!r:.99} is none of N (minibatches), Ns (seconds), never; N is 1 or more"
        )
    return n, unit


interval.domain = "N|Ns|never"

MODEL = Flag("model", text, "meralg1", "the learner: a file of model/", role=SHAPE)
NETWORK = Flag(
    "network",
    text,
    AUTO,
    "the network that it learns with: a file of model/networks/; auto: resnet18 for images of 3x32x32, else mlp",
    role=SHAPE,
)
GROUPS = {
    "stream": (
        Flag("data_path", text, "data/", "folder of the data files", role=FREE),
        Flag(
            "data_file",
            text,
            "mnist_permutations.pt",
            "the tasks; the MNIST variants are built in memory where they are no file",
            role=DATA,
        ),
        Flag(
            "mnist",
            text,
            None,
            "folder of four IDX files (Fashion-MNIST, KMNIST, EMNIST, …) to build the MNIST variants from",
            role=DATA,
        ),
        Flag(
            "scenario",
            text,
            SCENARIOS[0],
            "where classes belong to tasks: task: a task's own compete alone; class: all compete, and the task of a "
            "test example is not told",
            SCENARIOS,
            role=SHAPE,
        ),
        Flag("data_seed", integer(0), 0, "seed of tasks that are built in memory", role=DATA),
        Flag("samples_per_task", integer(), -1, "training examples per task, all if <= 0"),
        Flag("shuffle_tasks", yes_no, False, "present the tasks in random order", bare=True),
        Flag("n_epochs", integer(1), 1, "epochs per task"),
        Flag("batch_size", integer(1), 1, "examples handed to the learner at once"),
    ),
    "run": (
        Flag("seed", integer(0, MOST_SEED), 0, "seed of weights, stream and draws", role=CHANCE),
        Flag("log_every", integer(1), 100, "evaluate on all tasks every so many minibatches", role=CHANCE),
        Flag(
            "alignment",
            integer(0),
            0,
            "at each evaluation, compare the gradients of N test examples of each task seen",
            role=CHANCE,
        ),
        Flag("save_path", nonempty, "results/", "folder of the results", role=PLACE),
        Flag(
            "checkpoint_every",
            interval,
            (60, "seconds"),
            "write a checkpoint every N minibatches or Ns seconds",
            role=FREE,
        ),
        Flag(
            "keep_state",
            yes_no,
            True,
            "save the memory and counters of the learner too, for --start_from",
            role=FREE,
            bare=True,
        ),
        Flag("start_from", text, None, "go on from the learner of this finished run (its .pt) with further tasks"),
        Flag(
            "with_tasks_of",
            text,
            None,
            "with --start_from: data file of the tasks that the learner knows, to see what it forgets, where they "
            "are not found by themselves",
            role=FREE,
        ),
        Flag(
            "tensorboard",
            nonempty,
            None,
            "write the accuracies as they come to this folder, for TensorBoard",
            role=FREE,
        ),
        Flag(
            "resume",
            text,
            None,
            "go on from this checkpoint (its flags are the run's); auto, or no word: from this very run's in "
            "--save_path, if any",
            role=PLACE,
            bare=AUTO,
        ),
    ),
    "machine": (
        Flag("cuda", yes_no, False, "run on the GPU", role=CHANCE, bare=True),
        Flag("engine", text, AUTO, "what computes the steps; auto: native where it can", (AUTO, *ENGINES), CHANCE),
        Flag(
            "draws",
            text,
            AUTO,
            "random source of the memories: uniform (our own generator) or shuffle (the original's stream, slower); "
            "auto: shuffle on the reference engine",
            (AUTO, *DRAWS),
            CHANCE,
        ),
        Flag(
            "threads",
            integer(0, MOST_THREADS),
            0,
            "threads to use; 0: what the process may use, one where more do not pay",
            role=FREE,
        ),
        Flag("progress", text, AUTO, "progress bar on stderr; auto: on a terminal", (AUTO, "yes", "no"), PLACE, "yes"),
    ),
}
RUN_FLAGS = (MODEL, NETWORK, *(flag for group in GROUPS.values() for flag in group))
PLACES = [flag.name for flag in RUN_FLAGS if flag.role == PLACE]  # a sweep decides these for its runs


def words_of(name, text):
    """The words of a command line that give a flag this text."""
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
