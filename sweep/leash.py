"""`leash.py PARENT PROGRAM WORDS…` becomes `python PROGRAM WORDS…`, which gets SIGTERM when its parent dies.

However the parent dies, by SIGKILL too (Linux; prctl(2), PR_SET_PDEATHSIG). A script of its own rather than a function
that runs between fork and exec, which is not safe in a program with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, *command])
