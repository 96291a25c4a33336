"""Files that a reader sees whole or not at all."""

import errno
import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

ENDING = ".tmp"


@contextmanager
def writing(path, mode="wb"):
    """A file object ("wb", or "w" for text in UTF-8) whose content becomes `path` when the block ends well.

    Written beside the target, synced to disk, then renamed. A symbolic link stays, and what it leads to is written.
    When the block or the writing fails, it vanishes and `path` is what it was; OSError (a full disk, a vanished folder)
    is the caller's.
    """
    path = target_of(path)
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    temporary = path.with_name(f"{_stem(path)}{uuid.uuid4().hex[:8]}{ENDING}")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def target_of(path):
    """Where a file called so is, or would be: the end of its symbolic links. Of links in a circle it is one of them."""
    return Path(os.path.realpath(path))


def remove_leftovers(path):
    """Deletes what processes that were killed while writing `path` have left beside it. Nobody may be writing it."""
    path = target_of(path)
    with suppress(OSError):
        for entry in os.listdir(path.parent):
            if entry.startswith(_stem(path)) and entry.endswith(ENDING):
                with suppress(OSError):
                    os.unlink(path.with_name(entry))


def _stem(path):
    """How the names of temporary files begin: hidden, and the end of a long name, which is what tells names apart."""
    return f".{path.name[-50:]}."
