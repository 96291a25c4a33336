"""Files that a reader sees whole or not at all."""

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def writing(path, mode="wb"):
    """A file object whose content becomes `path` when the block ends well, and vanishes when it does not.

    Written beside the target, synced to disk, then renamed. OSError (a full disk, a vanished folder) is the caller's.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # the rename itself outlives a power cut, where folders can be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask
