"""A wheel brings compiled kernels, which load where there is no compiler; its libraries are chosen by the processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck
from limbeck.kernels import build

ROOT = Path(limbeck.__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the libraries of this wheel are for x86-64")
def test_kernels_of_a_wheel_load_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").is_file() or build.lacking("x86-64-v3"):
        pytest.skip("no checkout, or no AVX2")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (tmp_path / "tree").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree")
    shutil.copytree(
        ROOT / "src" / "limbeck", tmp_path / "tree" / "src" / "limbeck", ignore=shutil.ignore_patterns("__pycache__")
    )
    here = os.environ | {"LIMBECK_WHEEL_NATIVE": "x86-64-v3", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    here.pop("PYTHONPATH", None)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)],
                   cwd=tmp_path / "tree", env=here, check=True, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux_x86_64" in wheel.name
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], env=here, check=True)
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from limbeck.kernels import native\n"
        "found = native.find(); print(found.file, found.instructions, native.load() is not None)"
    )
    bare = {
        "PYTHONPATH": str(site),
        "PATH": str(tmp_path),
        "LIMBECK_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    file, _, rest = done.stdout.partition(" ")
    assert Path(file).is_relative_to(site) and rest.strip() == "AVX2 True"
    assert not (tmp_path / "cache").exists() and "compiling" not in done.stderr


def test_the_best_library_that_the_processor_serves_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_PACKAGED", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    old, new = build.VARIANTS["x86-64-v3"][1], build.VARIANTS["x86-64-v4"][1]
    for name in ("x86-64-v3", "x86-64-v4", "aarch64-dotprod"):
        (tmp_path / f"{name}-{build._fingerprint()}.so").touch()
    (tmp_path / "x86-64-v4-bf16-0123456789abcdef.so").touch()  # of another source
    for features, arch, wanted in (
        (old, "", "x86-64-v3"), (new, "", "x86-64-v4"), (new | {"avx512_bf16", "avx512_vnni"}, "", "x86-64-v4"),
        (new, "x86-64-v3", "x86-64-v3"), (old, "x86-64-v4", None), (new, "native", None), (set(), "", None),
    ):  # fmt: skip
        monkeypatch.setattr(build, "features", lambda features=features: features)
        found = build.packaged(arch)
        assert (found and found.name.rpartition("-")[0]) == wanted


def test_variants_that_a_compiler_does_not_know_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.c").write_text("int one(void) { return 1; }\n")
    monkeypatch.setattr(build, "_SOURCE", source)
    assert build.package_variants(tmp_path / "a", ["false"], "x86_64", list(build.VARIANTS)) == []
    assert capsys.readouterr().err.count("were not compiled") == 3
    try:
        made = build.package_variants(tmp_path / "b", build.compiler(), platform.machine(), list(build.VARIANTS))
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    assert all(file.is_file() for file in made)
