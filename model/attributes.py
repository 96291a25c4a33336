"""What a torch module that is not ours keeps, in its weights and attributes, as plain values and tensors; and back.

A module knows more than its `state_dict`: memories in lists, counters, random streams, an optimizer's momentum.
`Walk` finds all of it and makes a table of nodes, which may refer to one another, so that two names of one list, or two
views of one tensor, stay that. Nothing is executed to read it: only what stands here can be made of a node.

What is neither plain nor known stays where the constructor put it, if it is code (a function, a class, a constant);
anything else cannot be kept, and is named in `Walk.problems`. So is what such code refers to (a closure's list, a
hook's counter), and NumPy's arrays that share memory, as soon as it has changed: it would not be the same again.
"""

import argparse
import collections
import copy
import enum
import functools
import logging
import pathlib
import random
import re
import types
from contextlib import suppress

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

ALIGNED = 16  # bytes: of where a kept part of a tensor's storage begins
ATOMS = (type(None), bool, int, float, str)
CODE = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.MethodDescriptorType),
    *(type, functools.partial, enum.Enum, logging.Logger, pathlib.PurePath, re.Pattern, slice, type(...), np.ufunc),
    *(np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
SEQUENCES = {cls.__name__: cls for cls in (list, tuple, set, frozenset, torch.Size)}
MAPPINGS = {cls.__name__: cls for cls in (dict, collections.OrderedDict, collections.Counter)}
NAMESPACES = {cls.__name__: cls for cls in (argparse.Namespace, types.SimpleNamespace)}
FACTORIES = {cls.__name__: cls for cls in (int, float, list, dict, set, str, bool)}  # of a defaultdict
BIT_GENERATORS = {cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937)}
BIT_GENERATORS |= {cls.__name__: cls for cls in (np.random.Philox, np.random.SFC64)}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
OF_OPTIMIZERS = ("defaults", "state", "param_groups", "step")  # the last where a scheduler has put it
MACHINERY = frozenset(vars(torch.nn.Module())) - {"training"}  # of every module: its weights' dictionaries, its hooks
HOOKS = [name for name in sorted(MACHINERY) if re.fullmatch(r"_(for|back)ward(_pre)?_hooks", name)]
HOOKS += [f"_optimizer_{when}_hooks" for when in ("step_pre", "step_post")]


class Walk:
    """One walk over a module: its weights, buffers and attributes, those of its submodules, and what they refer to.

    file       the Python module of the file that defines it: objects of its classes are kept by their attributes
    args       the flags that it was given: what it changes in them is kept
    born       None, or the Walk over the module as its constructor left it
    device     where its weights are

    problems   {attribute: what it is} of what cannot be kept
    fixed      {attribute: object} of what stays where the constructor put it: code, modules, optimizers
    behind     {attribute: a copy of what it refers to, as the constructor left it} of code, hooks, arrays in one memory
    """

    def __init__(self, module, file, args=None, born=None, device="cpu"):
        self.file, self.args, self.born, self.device = file, args, born, torch.device(device)
        self.fixed, self.problems, self.behind = {}, {}, {}
        self.flags = {name: _copy(value) for name, value in vars(args).items()} if args is not None and not born else {}
        self._nodes, self._index, self._storages, self._later, self._arrays = [], {}, {}, [], []
        self._root = self._value(module, "")
        while self._later:  # what refers to weights, after all weights
            index, keep, value, path = self._later.pop(0)
            self._nodes[index] = keep(value, path)
        self._check_behind()

    def content(self):
        """Plain values and tensors, which `restore` reads. Of use where there are no problems."""
        flat = []
        for _, storage, start, end in self._storages.values():
            everything = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            home = torch.device(storage.device).type == self.device.type
            flat.append((start, home, everything[start:end].clone().cpu()))
        return {"root": self._root, "nodes": self._nodes, "storages": flat}

    def _check_behind(self):
        """What is behind code and in shared memory must be as the constructor left it."""
        self.behind |= self._shared()
        if self.born:
            for path, value in self.behind.items():
                if not same(value, self.born.behind.get(path)):
                    self.problems.setdefault(path, "shares or refers to what has changed since the start")
            return
        stays = [*self.fixed.values(), self.args]
        stays += [weight for it in stays if isinstance(it, torch.nn.Module) for weight in it._parameters.values()]
        self.behind = {path: _copy(value, stays) for path, value in self.behind.items()}

    def _shared(self):
        """{attribute: array} of NumPy's arrays whose memory is another's or a tensor's, too: each is kept alone."""
        spans = [(*_span(array), path, array) for path, array in self._arrays if array.size]
        for (device, address), (_, _, start, end) in self._storages.items():
            if device == "cpu" and start < end:
                spans.append((address + start, address + end, None, None))
        found, widest = {}, None
        for span in sorted(spans, key=lambda span: span[:2]):
            if widest and span[0] < widest[1]:
                found |= {path: array for _, _, path, array in (widest, span) if path is not None}
            if widest is None or span[1] > widest[1]:
                widest = span
        return found

    def _value(self, value, path):
        """The value itself, or ("#", its node)."""
        if type(value) in ATOMS:
            return value
        known = self._index.get(id(value))
        if known is None:
            index = len(self._nodes)
            self._index[id(value)] = index, value  # which also keeps it from being another's id
            self._nodes.append(None)
            if isinstance(value, torch.optim.Optimizer | LRScheduler):
                self._later.append((index, self._node, value, path))
            else:
                self._nodes[index] = self._node(value, path)
            return "#", index
        return "#", known[0]

    def _values(self, values, path):
        return [self._value(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _pairs(self, mapping, path):
        return [(self._value(k, path), self._value(v, f"{path}[{k!r:.40}]")) for k, v in mapping.items()]

    def _attributes(self, named, path, left_out=()):
        before = f"{path}." if path else ""
        return [(k, self._value(v, f"{before}{k}")) for k, v in named.items() if k not in left_out]

    def _node(self, value, path):
        kind, name = type(value), type(value).__name__
        if value is self.args:
            born = self.born.flags if self.born else self.flags
            changed = {k: v for k, v in vars(value).items() if k not in born or not same(v, born[k])}
            return ("args", self._attributes(changed, path))
        if SEQUENCES.get(name) is kind:
            return (name, self._values(value, path))
        if MAPPINGS.get(name) is kind:
            return (name, self._pairs(value, path))
        if NAMESPACES.get(name) is kind:
            return (name, self._attributes(vars(value), path))
        if kind is collections.defaultdict and (factory := getattr(value.default_factory, "__name__", "")) in FACTORIES:
            if FACTORIES[factory] is value.default_factory:
                return (name, factory, self._pairs(value, path))
        if kind is collections.deque:
            return (name, value.maxlen, self._values(value, path))
        if kind in (bytes, bytearray):
            return (name, torch.from_numpy(np.frombuffer(value, np.uint8).copy()))
        if kind is complex:
            return (name, value.real, value.imag)
        if kind is range:
            return (name, value.start, value.stop, value.step)
        if kind is np.ndarray or isinstance(value, np.generic):
            return self._array(value, path)
        if kind in (torch.Tensor, torch.nn.Parameter):
            return self._tensor(value, path)
        if isinstance(value, torch.nn.Module):
            return self._module(value, path)
        if isinstance(value, torch.optim.Optimizer) and kind.__module__.startswith("torch.optim"):
            return self._optimizer(value, path)
        if isinstance(value, LRScheduler) and kind.__module__.startswith("torch.optim"):
            if self._stays(value, path):
                return ("scheduler", path, self._value(value.state_dict(), path))
            return None
        if kind in (random.Random, np.random.RandomState, np.random.Generator, torch.Generator):
            return self._stream(value, path)
        if isinstance(value, CODE):
            self.behind[path] = list(_behind(value))
            if self.born is None:
                self.fixed[path] = value
            elif path not in self.born.fixed or self.born.fixed[path] != value:
                self.problems[path] = "is code that was not there at the start"
            return ("code", path)
        return self._record(value, path)

    def _stays(self, value, path):
        """Whether an object is where, and of the class that, the constructor made one; else that is a problem."""
        self.fixed[path] = value
        there = self.born is None or type(self.born.fixed.get(path)) is type(value)
        if not there:
            self.problems[path] = f"is {article(value)} that was not there at the start"
        return there

    def _module(self, module, path):
        if not self._stays(module, path):
            return None
        self._hooks(module, path)
        inner = self._attributes(module._modules, path)
        weights = self._attributes(module._parameters, path)
        buffers = self._attributes(module._buffers, path)
        own, home = vars(module), type(module).__module__
        if path and home.startswith("torch."):  # what it knows besides: a rate of dropout; what a stranger put there
            own = {k: v for k, v in own.items() if k == "training" or (home.startswith("torch.nn.") and k[0] != "_")}
            made = [k for k, v in own.items() if isinstance(v, torch.Tensor) and v.grad_fn is not None]
            own = {k: v for k, v in own.items() if k not in made}  # by a hook, again each time: a weight that is pruned
        return ("module", path, inner, weights, buffers, self._attributes(own, path, MACHINERY))

    def _optimizer(self, optimizer, path):
        if not self._stays(optimizer, path):
            return None
        groups = self._values(optimizer.param_groups, f"{path}.param_groups")
        state = self._pairs(dict(optimizer.state), f"{path}.state")
        self._hooks(optimizer, path)
        more = {k: v for k, v in vars(optimizer).items() if k[0] != "_" and k not in OF_OPTIMIZERS}
        defaults = self._value(optimizer.defaults, path)
        return ("optimizer", path, groups, state, defaults, self._attributes(more, path))

    def _hooks(self, owner, path):
        hooks = [hook for name in HOOKS for hook in (vars(owner).get(name) or {}).values()]
        self.behind[f"{path}.hooks".lstrip(".")] = [len(hooks), *_behind(*hooks)]

    def _tensor(self, tensor, path):
        if tensor.grad_fn is not None:
            self.problems[path] = "is part of a graph of gradients (use .detach())"
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_conj():
            self.problems[path] = f"is a tensor of layout {tensor.layout}"
        else:
            storage, step = tensor.untyped_storage(), tensor.element_size()
            key = (str(tensor.device), storage.data_ptr() or id(tensor))
            start = tensor.storage_offset() * step
            reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            end = start + (reach + 1) * step if tensor.numel() else start
            place, _, first, last = self._storages.get(key, (len(self._storages), storage, start, end))
            first = min(start, first) // ALIGNED * ALIGNED
            self._storages[key] = place, storage, first, max(end, last)
            shape = (str(tensor.dtype), start, tuple(tensor.shape), tensor.stride())
            role = (isinstance(tensor, torch.nn.Parameter), tensor.requires_grad)
            return ("tensor", place, *shape, *role, self._value(tensor.grad, f"{path}.grad"))
        return None

    def _array(self, array, path):
        if array.dtype.hasobject or array.dtype.names:
            self.problems[path] = f"is an array of {array.dtype}"
            return None
        if isinstance(array, np.ndarray):
            self._arrays.append((path, array))
        content = np.ascontiguousarray(array)
        numbers = torch.from_numpy(np.frombuffer(content.tobytes(), np.uint8).copy())
        return ("array", array.dtype.str, array.shape, not isinstance(array, np.ndarray), numbers)

    def _stream(self, stream, path):
        if isinstance(stream, random.Random):
            return ("Random", self._value(stream.getstate(), path))
        if isinstance(stream, np.random.RandomState):
            return ("RandomState", self._value(stream.get_state(), path))
        if isinstance(stream, torch.Generator):
            return ("torch.Generator", stream.device.type, stream.get_state())
        bits = stream.bit_generator
        if BIT_GENERATORS.get(type(bits).__name__) is not type(bits):
            self.problems[path] = f"draws from {article(bits)}"
            return None
        return ("Generator", type(bits).__name__, self._value(bits.state, path))

    def _record(self, value, path):
        """An object of a class of the learner's own file, which is all that its attributes are."""
        cls = type(value)
        mine = [base for base in cls.__mro__ if base.__module__ == self.file.__name__]
        others = set(cls.__mro__) - set(mine)
        if cls in mine and getattr(self.file, cls.__name__, None) is cls:
            hidden = any("__slots__" in vars(base) or "__getstate__" in vars(base) for base in mine)
            if others == {object} and not hidden:
                return ("record", cls.__name__, self._attributes(vars(value), path))
            if others == {object, tuple} and hasattr(cls, "_fields"):
                return ("named tuple", cls.__name__, self._values(value, path))
        self.problems[path] = f"is {article(value)}"
        return None


def restore(content, module, file, args=None, device="cpu", born=None):
    """Gives a newly built module what `Walk.content` holds.

    born   None: exactly that. Or the Walk over a module as it was built for the earlier tasks alone: then what nothing
           has changed since stays as the new module has it, and what has grown with the tasks is written to its
           beginning.

    Raises ValueError with the reason where it does not fit, and one of many errors where the content is damaged.
    """
    _Restoring(content, Walk(module, file, args, device=device), born).run()


class _Restoring:
    def __init__(self, content, new, born):
        self.content, self.new, self.born = content, new, born
        self.storages = [self._storage(*entry) for entry in content["storages"]]
        self.made = {}

    def run(self):
        with torch.no_grad():
            self._get(self.content["root"])

    def _storage(self, start, home, flat):
        if flat.dtype != torch.uint8 or flat.ndim != 1 or not isinstance(start, int) or start < 0:
            raise ValueError("its tensors are none")
        return start, flat.clone().to(self.new.device if home is True else "cpu")

    def _get(self, value):
        if type(value) is tuple:
            mark, index = value
            if mark != "#" or not 0 <= index < len(self.content["nodes"]):
                raise ValueError("it refers to what is not there")
            if index not in self.made:
                kind, *parts = self.content["nodes"][index]
                self._make(index, kind, parts)
            return self.made[index]
        if type(value) not in ATOMS:
            raise ValueError(f"it holds {article(value)}")
        return value

    def _list(self, values):
        return [self._get(value) for value in values]

    def _pairs(self, pairs):
        return {self._get(key): self._get(value) for key, value in pairs}

    def _named(self, pairs):
        if not all(isinstance(name, str) for name, _ in pairs):
            raise ValueError("an attribute has no name")
        return {name: self._get(value) for name, value in pairs}

    def _make(self, index, kind, parts):
        if kind in ("list", *MAPPINGS, *NAMESPACES, "defaultdict", "deque", "record", "set"):
            self._fill(index, kind, parts)  # may hold itself
        elif kind == "module":
            self._module(index, *parts)
        elif kind == "tensor":
            self._tensor(index, *parts)
        else:
            self.made[index] = getattr(self, f"_{kind.replace(' ', '_').replace('.', '_')}")(*parts)

    def _fill(self, index, kind, parts):
        if kind == "record":
            empty = object.__new__(self._class(parts[0]))
        elif kind == "defaultdict":
            empty = collections.defaultdict(FACTORIES[parts[0]])
        elif kind == "deque":
            empty = collections.deque(maxlen=parts[0])
        else:
            empty = (SEQUENCES | MAPPINGS | NAMESPACES)[kind]()
        self.made[index] = empty
        if kind in NAMESPACES or kind == "record":
            vars(empty).update(self._named(parts[-1]))
        elif isinstance(empty, dict):
            for key, value in self._pairs(parts[-1]).items():
                empty[key] = value
        elif isinstance(empty, set):
            empty.update(self._list(parts[-1]))
        else:
            empty.extend(self._list(parts[-1]))

    def _class(self, name):
        cls = getattr(self.new.file, name)
        if not isinstance(cls, type) or cls.__module__ != self.new.file.__name__:
            raise ValueError(f"{name} is no class of its file")
        return cls

    def _tuple(self, values):
        return tuple(self._list(values))

    def _frozenset(self, values):
        return frozenset(self._list(values))

    def _Size(self, values):
        return torch.Size(self._list(values))

    def _named_tuple(self, name, values):
        return tuple.__new__(self._class(name), self._list(values))

    def _bytes(self, numbers):
        return numbers.numpy().tobytes()

    def _bytearray(self, numbers):
        return bytearray(numbers.numpy().tobytes())

    def _complex(self, real, imag):
        return complex(real, imag)

    def _range(self, start, stop, step):
        return range(start, stop, step)

    def _array(self, dtype, shape, is_scalar, numbers):
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        array = np.frombuffer(numbers.numpy().tobytes(), dtype).reshape(shape).copy()
        return array[()] if is_scalar else array

    def _Random(self, state):
        stream = random.Random()
        stream.setstate(self._get(state))
        return stream

    def _RandomState(self, state):
        stream = np.random.RandomState()
        stream.set_state(self._get(state))
        return stream

    def _torch_Generator(self, device, state):
        stream = torch.Generator(device)
        stream.set_state(state)
        return stream

    def _Generator(self, name, state):
        bits = BIT_GENERATORS[name]()
        bits.state = self._get(state)
        return np.random.Generator(bits)

    def _there(self, path, kind):
        found = self.new.fixed.get(path)
        if not isinstance(found, kind):
            raise ValueError(f"a new learner has nothing like its attribute {path!r}")
        return found

    def _code(self, path):
        return self._there(path, CODE)

    def _args(self, changed):
        vars(self.new.args).update(self._named(changed))
        return self.new.args

    def _tensor(self, index, place, dtype, start, shape, strides, is_parameter, requires_grad, grad):
        first, flat = self.storages[place]
        dtype = DTYPES[dtype]
        offset, left = divmod(start - first, dtype.itemsize)
        reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else -1
        if left or offset < 0 or min((0, *shape, *strides)) < 0 or (offset + reach + 1) * dtype.itemsize > len(flat):
            raise ValueError("a tensor is larger than its numbers")
        view = torch.empty(0, dtype=dtype, device=flat.device).set_(flat.untyped_storage(), offset, shape, strides)
        if is_parameter:
            view = torch.nn.Parameter(view, requires_grad=False)
        view.requires_grad_(requires_grad)
        self.made[index] = view
        view.grad = self._get(grad)

    def _module(self, index, path, inner, weights, buffers, attributes):
        module = self.made[index] = self._there(path, torch.nn.Module)
        before = self.born and self.born.fixed.get(path)
        for name, value in inner:
            if self._get(value) is not module._modules.get(name):
                raise ValueError(f"a new learner has another {path}.{name}")
        if self.born is None and {name for name, _ in weights} != module._parameters.keys():
            raise ValueError(f"a new learner has other weights in {path or 'itself'}")
        for name, value in weights:
            self._weight(module, path, name, value)
        for name, value in buffers:
            new, old = module._buffers.get(name), self._get(value)
            module._buffers[name] = self._merged(new, old, before and before._buffers.get(name))
        for name, value in attributes:
            if name in MACHINERY:
                raise ValueError(f"{name} is no attribute to keep")
            new, old = vars(module).get(name), self._get(value)
            vars(module)[name] = self._merged(new, old, before and vars(before).get(name))

    def _weight(self, module, path, name, value):
        new, label = module._parameters[name], ".".join(filter(None, (path, name)))
        if value is None or new is None:
            module._parameters[name] = self._get(value)
            return
        _, index = value
        shape = tuple(self.content["nodes"][index][4])
        if shape != tuple(new.shape):
            raise ValueError(f"its weights {label} are {shape}, and {tuple(new.shape)} in a new learner")
        if index in self.made:  # tied weights
            module._parameters[name] = self.made[index]
            return
        old = self._get(value)
        new.data = old.data  # the object stays: others may hold it
        new.requires_grad_(old.requires_grad)
        new.grad = old.grad
        self.made[index] = new

    def _merged(self, new, old, before):
        return old if self.born is None else merge(new, old, before)

    def _optimizer(self, path, groups, state, defaults, more=()):
        optimizer = self._there(path, torch.optim.Optimizer)
        groups = self._list(groups)
        optimizer.param_groups[:] = groups
        optimizer.state = collections.defaultdict(dict, self._pairs(state))
        optimizer.defaults = self._get(defaults)
        vars(optimizer).update(self._named(more))
        return optimizer

    def _scheduler(self, path, state):
        scheduler = self._there(path, LRScheduler)
        scheduler.load_state_dict(self._get(state))
        return scheduler


STREAMS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


def merge(new, old, born):
    """What a learner for more tasks has where an earlier one, built as `born`, had come to `old`; `new` is as built."""
    if new is old or isinstance(old, STREAMS) or same(old, born):
        return new
    if type(new) is type(old) is type(born):
        if isinstance(old, torch.Tensor | np.ndarray):
            if new.dtype == old.dtype and new.ndim == old.ndim and all(map(int.__le__, old.shape, new.shape)):
                new[tuple(map(slice, old.shape))] = old
                return new
        elif isinstance(old, list) and len(old) == len(born) <= len(new):
            new[: len(old)] = map(merge, new, old, born)
            return new
        elif isinstance(old, dict):
            for key, value in old.items():
                new[key] = merge(new[key], value, born[key]) if key in new and key in born else value
            return new
        elif _has_attributes(old):
            vars(new).update(merge(vars(new), vars(old), vars(born)))
            return new
    return old


def same(one, other):
    """Whether two values are equal, all the way down."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(same, one, other))
    if _has_attributes(one) or isinstance(one, torch.nn.Module):
        return same(vars(one), vars(other))
    return bool(one == other)


class _Unknown:
    """In place of what cannot be copied: the same as nothing."""


def _copy(value, stays=()):
    """A deep copy, but for the objects that stay."""
    try:
        return copy.deepcopy(value, {id(it): it for it in stays})
    except Exception:  # its own affair
        return _Unknown()


def _behind(*code, seen=None):
    """Yields the objects, other than code, that pieces of code refer to; a function itself, so that another is told."""
    seen = set() if seen is None else seen
    for value in code:
        if id(value) in seen:
            continue
        seen.add(id(value))
        inner = []
        if isinstance(value, types.FunctionType):
            yield value
            inner = [
                *_enclosed(value),
                *(value.__defaults__ or ()),
                *(value.__kwdefaults__ or {}).values(),
                *vars(value).values(),
            ]
        elif isinstance(value, functools.partial):
            inner = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            inner = [value.__func__, value.__self__]
        elif isinstance(value, types.BuiltinFunctionType):
            inner = [value.__self__]
        elif not isinstance(value, CODE):
            yield value
        yield from _behind(*inner, seen=seen)


def _enclosed(function):
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is in it yet
            yield cell.cell_contents


def _span(array):
    """The addresses where an array's memory begins and ends."""
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    first = array.ctypes.data + sum(step for step in reach if step < 0)
    return first, array.ctypes.data + sum(step for step in reach if step > 0) + array.itemsize


def _has_attributes(value):
    return hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module, *CODE))


def article(value):
    """Its class with an article: a Foo, an Adam."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
