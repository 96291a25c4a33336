"""Builds the compiled engine in place: `python setup.py build_ext --inplace`. Needs Cython and a C compiler.

Without them the program runs on the reference engine, so a build that fails says so in one line and is no error.
The kernels are compiled once per generation of CPU (never -march=native); model/engine/_compiled.py picks one at run
time.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Sums may be reordered, which vectorising them needs; NaN and infinity keep their meaning (no -ffinite-math-only).
FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fno-tree-loop-distribute-patterns",
]
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = [
        "-mavx2",
        "-mfma",
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ]


class BuildOrSay(build_ext):
    """build_ext that tells in one line what it could not build."""

    def run(self):
        try:
            super().run()
        except Exception as error:
            self.say(error)

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception as error:
            self.say(f"{extension.name}: {error}")

    def say(self, what):
        reason = str(what).strip().splitlines()[0]
        print(
            f"native engine not built ({reason}): install a C compiler and Cython, then run "
            "`python setup.py build_ext --inplace`; until then the reference engine is used",
            file=sys.stderr,
        )


def extensions():
    """One extension for the draws, one per variant of the kernels; none without Cython."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        BuildOrSay.say(None, "no Cython")
        return []
    found = cythonize(
        [Extension("model.engine._draws", ["model/engine/_draws.pyx"], extra_compile_args=FLAGS)],
        build_dir="build/cython",
        quiet=True,
    )
    for name, flags in VARIANTS.items():
        found += cythonize(
            [Extension(f"model.engine._mlp_{name}", ["model/engine/_mlp.pyx"], extra_compile_args=FLAGS + flags)],
            build_dir=f"build/cython/{name}",
            quiet=True,
        )
    return found


setup(name="mer", packages=[], py_modules=[], ext_modules=extensions(), cmdclass={"build_ext": BuildOrSay})
