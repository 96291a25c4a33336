"""What the file of a learner, or of a network, says of itself, read without running it: its flags, packages, `args`."""

import ast
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path

import model.flags
import model.learner

HERE = Path(__file__).parent
READ = {"model.flags": model.flags, "model.learner": model.learner}  # ours: their values are known
CALLED = (model.flags.Flag, model.flags.integer, model.flags.number)
BUILTINS = {"int": int, "float": float, "str": str}
OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
# what pip calls a package that is imported under another name
PIP_NAMES = {"cv2": "opencv-python", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


class Unreadable(ValueError):
    """What a file declares is known only to who runs it. The message says why."""


class Declared:
    """The class Net of model/<name>.py, or its `flags` (declared_by), as the text tells.

    flags     the Flags that it declares; () where none can be read
    problem   None, or why its flags cannot be read, a phrase
    """

    def __init__(self, name, declared_by="Net"):
        self.name, self.flags, self.problem = name, (), None
        try:
            self.flags = _File.of(name).flags(declared_by)
        except Unreadable as error:
            self.problem = str(error)

    def missing(self):
        """None, or which of the packages that its file imports is not installed, and how to get it."""
        return _missing(_File.of(self.name).tree)

    def type_of(self, flag):
        """The type of a flag's default where its text shows one (getattr(args, "flag", 100), an argparse), or None."""
        try:
            return _File.of(self.name).types().get(flag)
        except Unreadable:
            return None


def defining(folder, line):
    """Names of the files of a folder that make what such a line does ("class Net", "def make"), unimported.

    And of those that cannot be understood and look as if they did.
    """
    names = sorted(file.name for file in pkgutil.iter_modules([str(folder)]) if not file.ispkg)
    return [name for name in names if _defines(line.split()[1], line, _source(folder / f"{name}.py"))]


def _source(path):
    """The bytes of a file, of which Python knows the encoding; none where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@cache
def _defines(name, line, source):
    if name.encode() not in source:
        return False
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        text = source.decode("utf-8-sig", errors="replace")
        return any(each.startswith(line) and each[len(line) :][:1] in ("(", ":", " ") for each in text.splitlines())
    return any(name in _bound(node) or line == f"def {getattr(node, 'name', None)}" for node in body)


def _bound(node):
    """Names that a statement binds."""
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def pip_name(package):
    """What to give to pip install for a module's name."""
    top = package.partition(".")[0]
    return PIP_NAMES.get(top, top)


def _missing(tree):
    """None, or which of the packages that a file imports is not installed; those in try: are its own affair."""
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            try:
                if importlib.util.find_spec(name.partition(".")[0]) is None:
                    return f"it needs a package that is not installed: pip install {pip_name(name)}"
            except (ImportError, ValueError):
                continue
    return None


class _Class:
    """A class of a file that is not run."""

    def __init__(self, file, node):
        self.file, self.node = file, node


class _File:
    """The source of model/<name>.py."""

    def __init__(self, name, source):
        self.name = name
        try:
            self.tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Unreadable(f"it is no Python: {error}") from error
        self.bound = {bound: node for node in self.tree.body for bound in _bound(node)}

    @classmethod
    def of(cls, name):
        try:
            return _read(name, (HERE / f"{name}.py").read_bytes())
        except OSError as error:
            raise Unreadable(f"it cannot be read ({error.strerror})") from error

    def types(self):
        """{flag: type} of the defaults in getattr(args, "flag", default) and in add_argument("--flag", …)."""
        found = {}
        for call in (node for node in ast.walk(self.tree) if isinstance(node, ast.Call)):
            called = getattr(call.func, "id", getattr(call.func, "attr", None))
            given = [getattr(argument, "value", None) for argument in call.args]
            if called == "getattr" and len(given) == 3 and isinstance(call.args[2], ast.Constant):
                found[given[1]] = type(given[2])
            elif called == "add_argument" and given and isinstance(given[0], str):
                by = {keyword.arg: keyword.value for keyword in call.keywords}
                kind = BUILTINS.get(getattr(by.get("type"), "id", None))
                if kind is None and isinstance(by.get("default"), ast.Constant):
                    kind = type(by["default"].value)
                found[given[0].lstrip("-")] = kind
        return {flag: kind for flag, kind in found.items() if kind in (bool, int, float, str)}

    def flags(self, declared_by):
        """The Flags that its Net declares, or that it names `flags` itself. Raises Unreadable."""
        try:
            if declared_by == "Net":
                flags = tuple(self.flags_of(self.value(ast.Name("Net"))))
            else:
                flags = tuple(self.named(declared_by)) if declared_by in self.bound else ()
        except RecursionError:
            raise Unreadable("its Net is made of itself") from None
        except (AttributeError, TypeError, LookupError, ArithmeticError, ValueError) as error:
            raise Unreadable(str(error)) from error
        if not all(isinstance(flag, model.flags.Flag) for flag in flags):
            raise Unreadable(f"its flags are {flags!r:.60}, and must be Flag objects")
        return flags

    def flags_of(self, cls):
        if not isinstance(cls, _Class):
            return getattr(cls, "flags", ())
        for node in cls.node.body:
            target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            if getattr(target, "id", None) == "flags" and getattr(node, "value", None) is not None:
                return cls.file.value(node.value)
        for base in cls.node.bases:
            try:
                found = cls.file.value(base)
            except Unreadable:  # torch.nn.Module, and what else declares none
                continue
            return self.flags_of(found)
        return ()

    def value(self, node):
        """What an expression means."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Tuple() | ast.List():
                parts = [
                    self.value(part.value) if isinstance(part, ast.Starred) else [self.value(part)]
                    for part in node.elts
                ]
                return tuple(value for part in parts for value in part)
            case ast.Name():
                return self.named(node.id)
            case ast.Attribute():
                owner = self.value(node.value)
                if node.attr == "flags" and not hasattr(owner, "__file__"):
                    return self.flags_of(owner)
                if owner in READ.values():
                    return getattr(owner, node.attr)
            case ast.Call():
                function = self.value(node.func)
                if function in CALLED and all(keyword.arg for keyword in node.keywords):
                    arguments = [self.value(argument) for argument in node.args]
                    return function(*arguments, **{word.arg: self.value(word.value) for word in node.keywords})
            case ast.BinOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](self.value(node.left), self.value(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand)
        raise Unreadable(f"its flags are known only when it runs: {ast.unparse(node):.60}")

    def named(self, name):
        """What a name of the file means."""
        node = self.bound.get(name)
        if isinstance(node, ast.ClassDef):
            return _Class(self, node)
        if isinstance(node, ast.Assign):
            return self.value(node.value)
        if isinstance(node, ast.ImportFrom):
            alias = next(alias for alias in node.names if (alias.asname or alias.name) == name)
            above = ["model", *self.name.split("/")[:-1]][: len(self.name.split("/")) + 1 - node.level]
            place = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            if place == "model":
                place, alias = f"model.{alias.name}", None
            if place in READ:
                return getattr(READ[place], alias.name) if alias else READ[place]
            if place.startswith("model.") and alias:
                return _File.of(place.removeprefix("model.").replace(".", "/")).named(alias.name)
        if node is None and name in BUILTINS:
            return BUILTINS[name]
        raise Unreadable(f"its flags are known only when it runs: {name}")


@cache
def _read(name, source):
    return _File(name, source)
