"""The C products under sanitizers, and on an emulated ARM processor: random cases against plain loops (driver.c)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from limbeck.kernels import build

HERE = Path(__file__).parent
NATIVE = Path(build.__file__).with_name("native")
CASES = str(max(100, int(os.environ.get("FUZZ_CASES", "200"))))

pytestmark = pytest.mark.slow


def compiled(compiler: str, target: Path, *flags: str) -> Path:
    sources = [HERE / "driver.c", *(NATIVE / name for name in ("many.c", "widened.c", "about.c"))]
    command = [compiler, "-O1", "-fopenmp", "-std=gnu11", "-Wno-psabi", f"-I{NATIVE}", *flags, *map(str, sources)]
    done = subprocess.run([*command, "-lm", "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(command: list[str], **variables: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.strip()


def test_products_read_and_write_within_their_bounds(tmp_path: Path) -> None:
    """Address and undefined-behaviour sanitizers see no fault in the AVX2 build, or in that of LIMBECK_ARCH.

    Leaks of the OpenMP runtime are not ours.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [f"-march={os.environ.get('LIMBECK_ARCH') or 'x86-64-v3'}"] if platform.machine() == "x86_64" else []
    try:
        driver = compiled(compiler, tmp_path / "driver", *flags)
    except AssertionError as error:
        if "asan" in str(error) or "ubsan" in str(error):
            pytest.skip("the compiler has no sanitizers")
        raise
    assert run([str(driver), CASES], ASAN_OPTIONS="detect_leaks=0") == "0 wrong"


def test_products_on_an_emulated_arm_processor(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("aarch64-linux-gnu-gcc and qemu-aarch64 are not both installed")
    driver = compiled(compiler, tmp_path / "driver", "-march=armv8.2-a+dotprod+fp16", "-static")
    assert run([emulator, "-cpu", "max", str(driver), "60"]) == "0 wrong"
