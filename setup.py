"""Builds the compiled engine in place: `python setup.py build_ext --inplace`. Needs Cython and a C compiler.

Without them the program runs on the reference engine: a build that fails says so in one line and is no error.
The kernels are compiled once per generation of CPU (never -march=native); model/engine/_compiled.py picks one at run
time.
"""

import importlib.machinery
import os
import runpy
import shutil
import sys
import textwrap
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = runpy.run_path("model/engine/_build.py")  # alone: importing it as a module would need PyTorch


def say(what):
    """One line to the user."""
    print(
        f"{what}; with a C compiler and Cython 3, `{BUILD['BUILD']}` builds the native engine; "
        "where none of its kernels are there, the reference engine is used",
        file=sys.stderr,
    )


class BuildOrSay(build_ext):
    """build_ext that builds what it can, on all cores, and says what it could not build."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        self.failed = {}  # name of an extension: the reason
        super().run()
        if self.failed:
            names = ", ".join(sorted(name.rpartition(".")[2] for name in self.failed))
            say(f"not built: {names} ({next(iter(self.failed.values()))})")
            for name in self.failed:  # what an earlier build left is of other sources
                for suffix in importlib.machinery.EXTENSION_SUFFIXES:
                    Path(name.replace(".", "/") + suffix).unlink(missing_ok=True)

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception as error:  # whatever a compiler may do
            self.failed[extension.name] = textwrap.shorten(str(error) or type(error).__name__, 100)

    def copy_extensions_to_source(self):
        self.extensions = [extension for extension in self.extensions if extension.name not in self.failed]
        super().copy_extensions_to_source()


def extensions():
    """One extension for the draws, one per variant of the kernels; none without Cython."""
    try:
        from Cython import __version__
        from Cython.Build import cythonize
    except ImportError:
        say("not built: Cython is missing")
        return []
    if int(__version__.split(".")[0]) < 3:
        say(f"not built: Cython is {__version__}")
        return []
    # What is made of other sources or flags lies in another folder, so that it is never used again.
    identity = BUILD["identity"]()
    for folder in Path("build/cython").glob("*"):
        if folder.name != identity:
            shutil.rmtree(folder)
    sources = {"_draws": ("_draws", [])}
    sources |= {f"_mlp_{name}": ("_mlp", flags) for name, flags in BUILD["VARIANTS"].items()}
    return [
        extension
        for module, (source, flags) in sources.items()
        for extension in cythonize(
            [
                Extension(
                    f"model.engine.{module}",
                    [f"model/engine/{source}.pyx"],
                    include_dirs=["model/engine"],
                    define_macros=[("IDENTITY", f'"{identity}"')],
                    extra_compile_args=BUILD["FLAGS"] + flags,
                )
            ],
            build_dir=f"build/cython/{identity}/{module}",
            quiet=True,
        )
    ]


setup(name="mer", packages=[], py_modules=[], ext_modules=extensions(), cmdclass={"build_ext": BuildOrSay})
