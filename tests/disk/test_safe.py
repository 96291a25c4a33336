"""Plain values in a file: what is written can be read, whatever is not plain is refused, NumPy's values are plain."""

import io
import pickle

import numpy as np
import pytest
import torch

from disk import safe
from errors import UserError
from tasks.files import read


@pytest.fixture
def there_and_back(tmp_path):
    """there_and_back(content): what `load` reads of what `dump` writes."""

    def run(content):
        (tmp_path / "file").write_bytes(safe.dump(content))
        return safe.load(tmp_path / "file", {})

    return run


def test_zeros_of_any_size_can_be_read_again(there_and_back, monkeypatch):
    monkeypatch.setattr(safe, "EXPANDS_FREELY", 1 << 16)
    content = {"memory": torch.zeros(2_000_000), "few": torch.arange(3)}
    assert len(safe.dump(content)) < 1_000_000
    assert all(there_and_back(content)[name].equal(value) for name, value in content.items())


def test_views_become_tensors_of_their_own(there_and_back):
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"columns": whole[:, 1:3], "row": whole[1], "turned": whole.T, "parts": [whole, (whole[:2], whole)]}
    again = there_and_back(content)
    for name in ("columns", "row", "turned"):
        assert again[name].equal(content[name]) and again[name].is_contiguous()
    assert again["parts"][0].equal(whole) and again["parts"][1][0].equal(whole[:2])
    assert again["parts"][1][1] is again["parts"][0]
    assert len(safe.dump({"row": torch.rand(1000, 1000)[0]})) < 10_000


PLAIN = [
    *(np.int64(-3), np.uint8(7), np.float32(0.1), np.float16(2), np.bool_(True), np.str_("häß"), np.bytes_(b"\xff\0a")),
    *(np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.zeros((0, 4)), np.array(5, dtype=">i2")),
    *(np.array(["a", "bcd"]), np.array([[True, False]]), np.random.default_rng(0).random((3, 2, 2))),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_numbers_of_numpy_are_no_code(value, there_and_back):
    again = there_and_back({"value": value, "twice": [value, value]})
    for it in (again["value"], *again["twice"]):
        assert np.array_equal(it, value) and np.shape(it) == np.shape(value)
        assert np.asarray(it).dtype.newbyteorder("=") == np.asarray(value).dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.complex128(1), np.zeros(2, [("a", "i4")]), np.datetime64("2020"), {1, 2}, len, object()],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_is_not_written(value):
    with pytest.raises((ValueError, TypeError)):
        safe.dump({"value": value})


class Call:
    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return self.function, self.arguments, self.state


def nested_encodings():
    import _codecs

    value = Call(_codecs.encode, "ab", "latin1")
    for _ in range(60):
        value = Call(_codecs.encode, value, "hex")
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: Call(np.ndarray, (1 << 40,)),
        lambda: Call(np.dtype, "O8"),
        lambda: Call(np._core.multiarray.scalar, Call(np.dtype, "i8"), b"1234567"),
        lambda: Call(np._core.multiarray._reconstruct, np.ndarray, (1 << 40,), b"b"),
        lambda: Call(
            np._core.multiarray._reconstruct,
            np.ndarray,
            (0,),
            b"b",
            state=(1, (1 << 40,), np.dtype("f8"), False, b"12345678"),
        ),
        nested_encodings,
    ],
)
def test_numpys_names_make_only_what_the_file_holds(make, tmp_path):
    file = io.BytesIO()
    torch.save({"value": make()}, file)
    try:
        safe.check_pickles(file)
        file.seek(0)
        value = safe.load_plain(file)["value"]
    except safe.DAMAGED:
        return
    assert isinstance(value, np.ndarray) and value.size == 0  # the arguments of a shape are not heard


def test_tasks_with_numbers_of_numpy_as_descriptors(tmp_path):
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    torch.save([[[np.int64(4), x, y], [np.str_("b"), x, y]]] * 2, tmp_path / "tasks.pt")
    assert [task.descriptor for task in read(tmp_path / "tasks.pt").tasks] == [4, "b"]


@pytest.mark.parametrize("kind", safe.NEW_KINDS)
def test_tensors_of_new_types(kind, there_and_back):
    whole = torch.arange(8.0).to(getattr(torch, kind))
    again = there_and_back({"whole": whole, "parts": [whole[2:4], whole, whole.clone()]})
    for one, other in zip((whole, whole[2:4], whole, whole), (again["whole"], *again["parts"]), strict=True):
        assert one.dtype == other.dtype and one.float().equal(other.float())


NEW = torch.zeros(3, dtype=torch.uint16)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.UntypedStorage,
        lambda: Call(torch.UntypedStorage, 1 << 40),
        lambda: [NEW, Call(torch.UntypedStorage, 1 << 40)],
        lambda: [NEW, Call(torch._utils._rebuild_tensor_v3, Call(torch.UntypedStorage, 8), 0, (4,), (1,), False, {})],
        lambda: ("storage", torch.UntypedStorage, "0", "cpu", 8),
        lambda: ("storage", torch.UntypedStorage, "0", "cpu"),
    ],
)
def test_a_storage_is_never_made_but_for_a_tensor(make, zipped):
    file = io.BytesIO()
    torch.save({"value": make()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises((pickle.UnpicklingError, safe.OtherProtocol), match="is never run|has tensors of new types"):
        safe.check_pickles(file)


@pytest.mark.parametrize("way_back", [b"h\x05", b"j\x05\0\0\0"])
def test_a_storage_that_is_remembered_is_not_called_either(way_back):
    named = b"\x80\x02(X\x07\0\0\0storagectorch.storage\nUntypedStorage\nq\x05"
    rest = b"X\x01\0\0\x000X\x03\0\0\0cpuK\x08tQ"
    safe.check_pickle(named + rest + b".")
    for call in (b"K\x08\x85R.", b"q\x06h\x06K\x08\x85R.", b"h\x05."):
        with pytest.raises(pickle.UnpicklingError, match="never run"):
            safe.check_pickle(named + rest + way_back + call)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_protocols_are_named(protocol, zipped, tmp_path):
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    path = tmp_path / "tasks.pt"
    torch.save([[["a", x, y]]] * 2, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"pickle of protocol {protocol}; only 2 is read: save it so"):
        read(path)


def test_what_may_end_in_json_is_plain():
    for value in (0, 1.5, -2, True, "text", None, (1, ("a", 2.0))):
        assert safe.are_plain({"name": value}), value
    for value in (float("nan"), float("inf"), (1, -float("inf")), [1], {"a": 1}, b"bytes", torch.ones(1)):
        assert not safe.are_plain({"name": value}), value
    assert not safe.are_plain({1: "text"})
