"""Learners of strangers, of every kind that may lie in model/: each run ends with an exit code and words, no traceback.

They are put into a copy of the program, all at once: none of them may touch another's run.
"""

import re

import pytest
from strangers import a_learner, copy_with, described, of, run

# what a foreign module may have: each of these learns as the plain one does
HARMLESS = {
    "plain": a_learner(),
    "state_dict_attribute": a_learner(init="self.state = {'a': 1}"),
    "state_list": a_learner(init="self.state = []"),
    "notes_none": a_learner(init="self.notes = None"),
    "engine_text": a_learner(init="self.engine = 'none'"),
    "parts_and_more": a_learner(init="self.parts = self.examples = self.flags = self.remarks = 3"),
    "hidden_methods": a_learner(init="self.cuda = self.to = self.train = self.eval = self.cpu = args.cuda"),
    "hidden_parameters": a_learner(init="self.parameters = self.state_dict = self.modules = 5"),
    "mask_of_inf": a_learner(init="self.register_buffer('mask', torch.full((3, 3), -float('inf')))"),
    "nan_buffer": a_learner(init="self.register_buffer('nothing', torch.tensor(float('nan')))"),
    "frozen_inf": a_learner(init="self.m = torch.nn.Parameter(torch.tensor(-float('inf')), requires_grad=False)"),
    "nested_state_dict": a_learner(
        body="def state_dict(self, *a, **k):\n    return {'net': super().state_dict(), 'n': 3, 'deep': [{'x': {1}}]}"
    ),
    "number_state_dict": a_learner(body="def state_dict(self):\n    return 7"),
    "failing_state_dict": a_learner(body="def state_dict(self):\n    raise RuntimeError('no')"),
    "a_lock": a_learner(top="import threading", init="self.lock = threading.Lock()"),
    "changes_folder": a_learner(top="import os; os.chdir('/')", init="os.chdir('/')", observe="os.chdir('/')"),
    "args_kept": a_learner(init="self.args = args; args.more = object()"),
    "strange_repr": a_learner(
        top="class Odd:\n    __slots__ = ()\n    def __repr__(self):\n        raise ValueError\n"
        "    def __eq__(self, other):\n        raise ValueError\n    __hash__ = None",
        init="self.odd = Odd()",
    ),
    "itself": a_learner(init="self.__dict__['me'] = self; self.list = [self]; self.list.append(self.list)"),
    "imported_net": "from .zoo_plain import Net",
    "assigned_net": a_learner().replace("class Net", "class Learner").replace("super().__init__", "super().__init__")
    + "\n\nNet = Learner\n",
    "own_parse_args_guarded": a_learner() + "\nif __name__ == '__main__':\n    raise SystemExit(3)\n",
}
# at import: what the message about it says
AT_IMPORT = {
    "missing_package": ("import ipdb_no_such", r"ipdb_no_such.*pip install ipdb_no_such"),
    "missing_cv2": ("import cv2.no_such", r"pip install opencv-python"),
    "missing_sibling": ("from .no_such_file import X", r"model/no_such_file\.py"),
    "missing_name": ("from .common import NoSuchNet", "NoSuchNet"),
    "exits": ("import sys; sys.exit(0)", "ends the program"),
    "parses": (
        "import argparse; argparse.ArgumentParser(usage='none').parse_args()",
        "ends the program.*parse the command line",
    ),
    "reads_a_file": ("open('no/such/file')", r"FileNotFoundError.*no/such/file.*line 2"),
    "divides": ("1 / 0", r"ZeroDivisionError.*line 2: 1 / 0"),
    "no_python": ("class class", "invalid syntax"),
    "base_exception": ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
    "name_error": ("undefined", "undefined"),
}
NO_NET = {
    "flags_of_text": (a_learner(body="flags = ['lr']"), r"flags of its Net are \['lr'\].*Flag objects"),
    "a_function": ("def Net(*a):\n    pass\n\n\nNet = Net\n", "neither a model.learner.Learner nor a torch.nn.Module"),
    "no_observe": (a_learner().replace("def observe", "def look"), r"no observe\(x, t, y\)"),
    "takes_threads": (
        a_learner("from model.flags import Flag, integer", "flags = (Flag('threads', integer(0), 2, 'x'),)"),
        "--threads is the program's own; rename it",
    ),
    "other_default": (
        a_learner("from model.flags import Flag, number", "flags = (Flag('lr', number(0), 0.5, 'x'),)"),
        r"--lr \(number, default 0\.5\) is already declared by .* \(number, default 0\.001\); rename it",
    ),
}
FLAG = "from model.flags import Flag\nfrom pathlib import Path"
NO_NET |= {
    "flag_of_odd_help": (
        a_learner(FLAG, "flags = (Flag('odd_k', float, 1.0, 3),)"),
        r"Flag\('odd_k', …\) takes name, parser, default, help",
    ),
    "flag_of_no_parser": (a_learner(FLAG, "flags = (Flag('odd_k', 1.0, float, 'x'),)"), r"Flag\('odd_k', …\) takes"),
    "flag_of_a_path": (
        a_learner(FLAG, "flags = (Flag('odd_path', Path, Path('x'), 'x'),)"),
        r"the value of its flag --odd_path is .*Path\('x'\), and must be a finite number or a text",
    ),
    "flag_of_bools": (
        a_learner(FLAG, "flags = (Flag('odd_bool', bool, False, 'x'),)"),
        "--odd_bool is False, and must be .* that its parser reads from 'no'; mend that file",
    ),
}
CHANGES_TORCH = {
    "default_dtype": a_learner("import torch\ntorch.set_default_dtype(torch.float64)\ntorch.manual_seed(3)"),
    "no_more_threads": a_learner("import torch, random, numpy\nrandom.seed(1); numpy.random.seed(1)"),
}
# in mid-run: what its message says, examples seen
FAILING = {
    "observe_raises": (
        a_learner(observe="if self.seen == 20: raise RuntimeError('out of luck')"),
        r"model/zoo_observe_raises\.py: its observe raised RuntimeError: out of luck \(line \d+: if self.seen == 20.*"
        r"after 19 examples",
        19,
    ),
    "cannot_be_said": (
        a_learner(
            top="class Odd(Exception):\n    def __str__(self):\n        raise RuntimeError",
            observe="if self.seen == 20: raise Odd",
        ),
        "its observe raised Odd: no message",
        19,
    ),
    "generator_exit": (a_learner(observe="if self.seen == 20: raise GeneratorExit"), "raised GeneratorExit", 19),
    "observe_exits": (a_learner(observe="if self.seen == 20: raise SystemExit(0)"), "SystemExit", 19),
    "missing_flag_late": (
        a_learner(init="self.args = args", observe="if self.seen == 20: self.args.n_sampled"),
        "give that flag with --learner_flag n_sampled=VALUE, or declare it",
        19,
    ),
    "tuple_late": (
        a_learner(forward="if self.seen > 9: return self.net(x), 3"),
        r"its forward returned a tuple, and must return the \(B, C\) outputs",
        12,
    ),
    "flat_late": (a_learner(forward="if self.seen > 9: return self.net(x)[:, 0]"), r"of \(\d+,\) for", 12),
    "forward_raises_late": (a_learner(forward="if self.seen > 9: 1 / 0"), "its forward raised ZeroDivisionError", 12),
    "lamaml": (
        a_learner().replace("def observe(self, x, t, y)", "def observe(self, x, y, t)"),
        r"observe takes \(x, y, t\), La-MAML's order, and is called as observe\(x, t, y\): swap",
        0,
    ),
    "quadratic_program": (
        a_learner(observe="if self.seen == 20: raise ValueError('matrix G is not positive definite')"),
        "multiple of the identity",
        19,
    ),
    "lazy_package": (a_learner(observe="if self.seen == 20: import no_such_thing"), "pip install no_such_thing", 19),
}
NAN = a_learner(forward="if self.seen > 9: return self.net(x) * float('nan')")
UNBUILDABLE = {
    "missing_flag": (
        a_learner(init="self.k = args.n_sampled_memories"),
        r"AttributeError.*n_sampled_memories.*line \d+: self\.k.*--learner_flag n_sampled_memories=VALUE",
    ),
    "other_arguments": (a_learner().replace("n_tasks, args):", "n_tasks, args, more):"), r"Net\(n_inputs, n_outputs,"),
    "builds_badly": (a_learner(init="torch.nn.Linear(-3, 2)"), "its __init__ raised RuntimeError"),
}
LEARNER_FLAG = a_learner(
    init="self.k, self.name, self.rate = args.k, getattr(args, 'name', 'none'), getattr(args, 'rate', 0.5)\n"
    "self.on, self.n = getattr(args, 'on', False), getattr(args, 'n', 4)\n"
    "print('got', repr((self.k, self.name, self.rate, self.on, self.n)))"
)


def sources():
    """{name: source} of all of them."""
    found = dict(HARMLESS) | CHANGES_TORCH | {"learner_flag": LEARNER_FLAG, "nan": NAN}
    found |= {name: a_learner(top) for name, (top, _) in AT_IMPORT.items()}
    found["divides_by_zero"] = a_learner(FLAG, "flags = (Flag('ratio', lambda text: 1 / float(text), 1.0, 'x'),)")
    for group in (NO_NET, FAILING, UNBUILDABLE):
        found |= {name: entry[0] for name, entry in group.items()}
    return {f"zoo_{name}": source for name, source in found.items()}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    program = copy_with(tmp_path_factory.mktemp("zoo"), sources())
    (program / "model" / "zoo_folder.py").mkdir()
    (program / "model" / "zoo_bytes.py").write_bytes(b"class Net:\0\xff\n")
    (program / "model" / "zoo_gone.py").symlink_to("nowhere.py")
    return program


@pytest.fixture(scope="module")
def results(program):
    lines = {name: (of(name), None) for name in sources() if name.removeprefix("zoo_") not in CHANGES_TORCH}
    lines["online beside them"] = of("online", "--engine", "native"), None
    lines["help"] = ["--help"], None
    for name, words in {
        "typed": ["k=3", "rate=1", "on=yes", "n=7", "name=5"],
        "looks": ["k=0.5"],
        "looks yes": ["k=yes"],
        "looks text": ["k=a=b"],
        "not whole": ["k=1", "n=half"],
        "infinite": ["k=inf"],
        "a run's": ["k=1", "threads=2"],
        "declared": ["k=1", "lr=0.2"],
        "nothing": ["k"],
    }.items():
        given = [part for word in words for part in ("--learner_flag", word)]
        lines[f"flag {name}"] = of("zoo_learner_flag", *given), None
    lines["flag whose parser fails"] = of("zoo_divides_by_zero", "--ratio", 0), None
    lines["flag ours"] = of("online", "--learner_flag", "n_hidens=3"), None
    lines["flag directly"] = of("zoo_learner_flag", "--k", 3), None
    return run(program, lines)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_module_has_costs_no_result(name, results, load_result):
    found, plain = results[f"zoo_{name}"], results["zoo_plain"]
    assert found.code == 0, found.err
    assert {".txt", ".pt", ".json"} <= found.files.keys()
    assert described(found)["result_a"] == described(plain)["result_a"]
    assert described(found)["status"] == "complete"
    load_result(found.files[".pt"])  # plain values and tensors alone


def test_what_is_left_out_of_the_weights_is_said(results):
    assert described(results["zoo_nested_state_dict"])["notes"] == {
        "left out of the weights": "state_dict['deep'][0]['x']: a set"
    }
    assert "RuntimeError: no" in described(results["zoo_failing_state_dict"])["notes"]["left out of the weights"]


@pytest.mark.parametrize("name", AT_IMPORT)
def test_a_file_that_cannot_be_imported(name, results):
    found = results[f"zoo_{name}"]
    assert found.code == 2 and not found.files
    assert found.err.splitlines()[-1].startswith(f"error: model/zoo_{name}.py cannot be imported: ")
    assert re.search(AT_IMPORT[name][1], found.err), found.err
    assert ("mend that file" in found.err) != name.startswith("missing_") or name == "missing_name"


@pytest.mark.parametrize("name", [*NO_NET, *UNBUILDABLE])
def test_a_file_that_makes_no_learner(name, results):
    found = results[f"zoo_{name}"]
    assert found.code == 2 and not found.files
    text = (NO_NET | UNBUILDABLE)[name][1]
    assert found.err.splitlines()[-1].startswith("error: ") and f"model/zoo_{name}.py" in found.err
    assert re.search(text, found.err), found.err


def test_a_flag_whose_parser_fails(results):
    found = results["flag whose parser fails"]
    assert found.code == 2 and "argument --ratio: '0': its parser raised ZeroDivisionError" in found.err


@pytest.mark.parametrize("name", FAILING)
def test_what_was_evaluated_before_a_failure_is_saved(name, results):
    found, plain = results[f"zoo_{name}"], results["zoo_plain"]
    _, text, seen = FAILING[name]
    assert found.code == 1
    last = found.err.splitlines()[-1]
    assert last.startswith(f"error: zoo_{name} failed: model/zoo_{name}.py: its ")
    assert last.endswith("what came before is saved")
    assert re.search(text, last), last
    about = described(found)
    assert about["status"] == "failed" and about["failure"] in last
    assert {".txt", ".pt", ".json"} <= found.files.keys() and ".checkpoint" not in found.files
    before = [at for at in described(plain)["examples_seen"] if at < seen + (not name.endswith("_late") or seen == 19)]
    assert about["examples_seen"] == before
    assert about["result_a"] == described(plain)["result_a"][: len(before)]


def test_answers_that_are_no_numbers_are_no_result(results):
    found, plain = results["zoo_nan"], described(results["zoo_plain"])
    about = described(found)
    assert found.code == 1 and about["status"] == "diverged" and about["failure"] in found.err
    assert about["failure"] == "outputs for test examples of task 0 are not numbers (NaN) after example 12"
    assert about["result_a"] == plain["result_a"][: len(about["result_a"])] and len(about["result_a"]) == 3


def test_other_files_change_nothing(results, program):
    """Not one number of a learner of ours, not a word of its run."""
    there = results["online beside them"]
    with_zoo = described(there)
    for path in (program / "model").glob("zoo_*"):
        path.rename(program.parent / path.name)
    try:
        alone = described(run(program, {"online alone": (of("online", "--engine", "native"), None)})["online alone"])
    finally:
        for path in program.parent.glob("zoo_*.py"):
            path.rename(program / "model" / path.name)
    for part in ("result_t", "result_a", "args", "science", "code", "stats"):
        one, other = with_zoo[part], alone[part]
        if part == "args":
            one, other = ({**flags, "save_path": ""} for flags in (one, other))
        assert one == other
    assert "zoo_" not in there.err


def test_the_help_names_what_cannot_be_used(results):
    text = " ".join(results["help"].out.split())
    assert results["help"].code == 0
    assert "zoo_plain" in text and "zoo_reads_a_file" in text, "whose file is not run to find out"
    for name, why in {
        "flags_of_text": r"its flags are \('lr',\), and must be Flag objects",
        "takes_threads": "its flag --threads is the program's own",
        "other_default": "its flag --lr .* is already declared by model/flags.py",
        "missing_package": "it needs a package.*pip install ipdb_no_such",
        "no_python": "it is no Python",
    }.items():
        assert re.search(f"note: model/zoo_{name}.py is left out: {why}", results["help"].err), results["help"].err
        assert f"zoo_{name}" not in text
    assert "zoo_plain" not in results["help"].err


@pytest.mark.parametrize(
    "name, got",
    {
        "typed": (3, "5", 1.0, True, 7),
        "looks": (0.5, "none", 0.5, False, 4),
        "looks yes": (True, "none", 0.5, False, 4),
        "looks text": ("a=b", "none", 0.5, False, 4),
        "declared": (1, "none", 0.5, False, 4),
    }.items(),
)
def test_flags_that_a_file_reads_without_declaring_them(name, got, results):
    found = results[f"flag {name}"]
    assert found.code == 0, found.err
    assert f"got {got!r}\n" in found.out
    about = described(found)
    assert about["args"]["k"] == got[0] == about["science"]["k"]
    assert about["args"]["lr"] == (0.2 if name == "declared" else 0.1)
    assert ("rate" in about["args"]) == (name == "typed")


@pytest.mark.parametrize(
    "name, text",
    {
        "not whole": "--learner_flag n=half: n is a whole number in the learner's file; give one",
        "infinite": "--learner_flag k=inf: it must be finite",
        "a run's": "--learner_flag threads=2: threads is a flag of every run; say --threads 2",
        "nothing": "'k' is not NAME=VALUE",
        "ours": r"online reads no such flag \(did you mean n_hiddens\?\); it reads lr, n_hiddens, n_layers",
        "directly": "unrecognized arguments: --k 3.*--learner_flag NAME=VALUE",
    }.items(),
)
def test_flags_that_cannot_be(name, text, results):
    found = results[f"flag {name}"]
    assert found.code == 2 and not found.files
    assert re.search(text, found.err), found.err


@pytest.mark.parametrize("name", CHANGES_TORCH)
def test_a_file_that_changes_torch(name, program):
    found = run(program, {name: (of(f"zoo_{name}"), None)})[name]
    if name == "default_dtype":  # its weights are float64, the inputs are not
        assert found.code == 1 and "its forward raised RuntimeError" in found.err and "line 19" in found.err
        assert "it was never evaluated, so there is nothing to save" in found.err
    else:
        assert found.code == 0 and ".json" in found.files


def test_the_names_of_others(program):
    lines = {name: (["--model", name], None) for name in ("single", "multimodal", "meralg2", "nothing_like_it")}
    found = run(program, lines | {"flag": (["--model", "online", "--n_hidden", "3"], None)})
    assert all(run.code == 2 for run in found.values())
    assert "unknown model 'single', which is online here; choose from " in found["single"].err
    assert "unknown model 'multimodal', which is taskinput here" in found["multimodal"].err
    assert "unknown model 'meralg2' (did you mean meralg" in found["meralg2"].err
    assert "did you mean" not in found["nothing_like_it"].err
    assert "unrecognized arguments: --n_hidden 3 (did you mean --n_hiddens?)" in found["flag"].err
