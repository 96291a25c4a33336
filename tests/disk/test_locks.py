"""Claims: one holder at a time, whatever becomes of it, and of the file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disk import locks

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="no flock here")


def test_one_at_a_time(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        locks.claim(path)
    first = locks.claim(path, create=True)
    assert first and locks.claim(path) is None
    first.close()
    second = locks.claim(path)
    assert second
    del second
    assert locks.claim(path)


def test_a_file_that_replaces_another_is_claimed_anew(tmp_path):
    path, new = tmp_path / "file", tmp_path / "new"
    path.touch()
    first = locks.claim(path)
    with open(new, "wb") as file:
        second = locks.claim_open(file)
    os.replace(new, path)
    assert locks.claim(path) is None
    second.close()
    assert locks.claim(path)
    first.close()


def test_a_read_only_file_can_be_claimed(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o400)
    assert locks.claim(path)


def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / "file"
    code = "from disk.locks import claim; import sys, time; it = claim(sys.argv[1], True); print(1, flush=True)"
    words = [sys.executable, "-c", f"{code}; time.sleep(60)", path]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert locks.claim(path) is None
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not locks.claim(path):
        assert time.monotonic() < deadline


def test_where_there_is_no_flock_every_claim_succeeds_and_holds_no_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        locks.claim(path)
    first, second = locks.claim(path, create=True), locks.claim(path)
    assert first and second and first.descriptor is second.descriptor is None
    with open(path, "wb") as file:
        assert locks.claim_open(file).descriptor is None
