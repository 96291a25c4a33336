"""TensorBoard's points: every accuracy of the .json, once, also after a run was stopped."""

import json
import re
import signal
import sys
from types import SimpleNamespace

import pytest
from runs import WAYS, a_signal, after, go_fixture, place, words_of  # noqa: F401


@pytest.fixture
def boards(monkeypatch):
    """{folder: {(tag, step): value}} of what TensorBoard would show, as its writers and its purging leave it."""
    shown = {}

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            points = shown.setdefault(str(folder), {})
            if purge_step is not None:
                for key in [key for key in points if key[1] >= purge_step]:
                    del points[key]
            self.points = points

        def add_scalar(self, tag, value, step):
            assert (tag, step) not in self.points, "written twice"
            self.points[tag, step] = value

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    return shown


@pytest.mark.parametrize("stops", [0, 2])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids="-".join)
def test_points(way, stops, go, tmp_path, boards):
    folder = place(tmp_path / "run")
    words = words_of("eralg4", way, "--tensorboard", "board")
    for _ in range(stops):
        with after(7, a_signal(signal.SIGTERM)):
            found = go(folder, *words)
        words = ["--resume", re.search(r"--resume (\S+)$", found.err, re.MULTILINE)[1], "--tensorboard", "board"]
    assert go(folder, *words).code == 0
    (path,) = folder.glob("results/*.json")
    saved = json.loads(path.read_text())
    wanted = {}
    for t, row, seen in zip(saved["result_t"], saved["result_a"], saved["examples_seen"], strict=True):
        wanted |= {(f"accuracy/task {i:03d}", seen): value for i, value in enumerate(row)}
        wanted["accuracy/tasks seen", seen] = sum(row[: t + 1]) / (t + 1)
    assert boards[str(folder / "board")] == wanted and len(wanted) > 20
