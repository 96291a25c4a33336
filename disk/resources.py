"""Disk, memory and cores: is there enough?"""

import math
import os
import shutil
from pathlib import Path

from errors import UserError


def check_room(folder, n_bytes, what):
    """Raises UserError where the disk of `folder` has too little room for `n_bytes` of `what`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        need, have = (f"{number / 1e9:.2f} GB" for number in (n_bytes, free))
        raise UserError(f"{what} needs {need}, the disk of {folder} has {have} free; make room or take another folder")


def available_memory():
    """Bytes of memory that can be had; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), math.inf)


def n_usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
