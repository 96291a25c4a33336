"""A file can be claimed: by one process at a time, until that ends, however it ends.

By flock(2), which the kernel lets go of when the last descriptor is closed: a process that was killed leaves no claim.
On a network file system it must reach across machines: NFS 4, or NFS 3 with its lock daemon (not mounted nolock or
local_lock=flock), Lustre mounted with -o flock, GPFS, CephFS. Where a system has no flock, every claim succeeds.
"""

import errno
import os
from contextlib import suppress

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None


class Claim:
    """An open file that is locked until `close`; processes that inherit `descriptor` hold it too."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def close(self):
        if self.descriptor is not None:
            with suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = None

    __del__ = close


def claim(path, create=False):
    """The Claim of a file, or None where another process holds it. Raises OSError where there is no such file.

    create   makes the file where it is missing
    """
    while True:
        if create:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o666))
        found = _locked(path)
        if found is None:
            return None
        if found.descriptor is None or _is_at(found.descriptor, path):
            return found
        found.close()  # replaced or deleted by who held it: there may be another of its name


def claim_open(file):
    """The Claim of a file that is being written under a name that nobody else knows yet."""
    try:
        return _locked(file.name)
    except OSError:  # a file system without locks
        return Claim(None)


def _locked(path):
    """The Claim of the file that is there now, or None. Open for reading, so that it keeps no disk from being made
    read-only; where a lock takes a file that is open for writing (NFS), for that.
    """
    if fcntl is None:
        os.stat(path)
        return Claim(None)  # where there is none, a file that is open can often not be replaced
    for mode in (os.O_RDONLY, os.O_RDWR):
        found = Claim(os.open(path, mode))
        try:
            fcntl.flock(found.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return found
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EBADF or mode == os.O_RDWR:
                raise


def _is_at(descriptor, path):
    """Whether the open file is still the one of that name."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
