"""Compile the C kernels into a wheel, a library for each kind of processor; all else is in pyproject.toml.

Where there is no C compiler the wheel holds the sources alone, and the kernels are compiled at first use where one is.
An editable install compiles nothing here either. LIMBECK_WHEEL_NATIVE names the libraries (``build.VARIANTS``), by
commas; "all" is the default and "off" leaves them out.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "src"))

from limbeck.kernels import build  # noqa: E402

NAMES = os.environ.get("LIMBECK_WHEEL_NATIVE", "all")


def wanted() -> list[str] | None:
    """Return the compiler's command; None where nothing is to be compiled."""
    if NAMES == "off":
        return None
    try:
        return build.compiler()
    except FileNotFoundError:
        print("no C compiler was found: the wheel holds no compiled kernels", file=sys.stderr)
        return None


class BuildWithKernels(build_py):
    """Copy the package, then compile the kernels beside their sources."""

    def run(self) -> None:
        """Build."""
        super().run()
        compiler = wanted()
        if compiler is not None and not self.editable_mode:
            folder = Path(self.build_lib) / "limbeck" / "kernels" / "native" / "built"
            names = list(build.VARIANTS) if NAMES == "all" else NAMES.split(",")
            build.package_variants(folder, compiler, platform.machine(), names)


class AnyPython(bdist_wheel):
    """The libraries are no extension modules: one wheel serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tags: of Python, of its binary interface, of the machine."""
        return "py3", "none", super().get_tag()[2]


class Machine(Distribution):
    """A wheel with libraries is of one machine, though Python compiles nothing of it."""

    def has_ext_modules(self) -> bool:
        """Say whether the wheel is of one machine."""
        return wanted() is not None


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPython}, distclass=Machine)
