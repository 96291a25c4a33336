"""The same bits from the kernels' arithmetic, which compiles without Python, on other CPUs than this: by emulation."""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from model.engine import _build

HERE = Path(__file__).parent
EXPECTED = ("learned 1", "special 1 1 1 1")

# name: (compiler, flags, what runs it)
MACHINES = {
    f"{platform.machine()}, {variant}": ("cc", flags, [])
    for variant, flags in _build.VARIANTS.items()
    if variant != "avx512"  # which test_variants runs where there is one
} | {
    "arm64": ("aarch64-linux-gnu-gcc", ["-static"], ["qemu-aarch64"]),  # Debian: gcc-aarch64-linux-gnu qemu-user
}


@cache
def printed(machine, folder):
    """What arithmetic.c prints there."""
    compiler, flags, emulator = MACHINES[machine]
    for tool in (compiler, *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = folder / machine.replace(", ", "_")
    command = [compiler, *_build.FLAGS, *flags, f"-I{_build.FOLDER}", "-o", program, HERE / "arithmetic.c", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return subprocess.run([*emulator, program], capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_the_same_bits(machine, tmp_path_factory):
    if "avx2" in machine and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX2")
    folder = tmp_path_factory.getbasetemp()
    here = printed(next(iter(MACHINES)), folder)
    assert all(line in here.splitlines() for line in EXPECTED)
    assert printed(machine, folder) == here
