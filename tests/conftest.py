"""Shared by every test: one seed, one thread, no network, and the real data where it lies."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that tests import `tests.reference...`
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import reads it: no test may reach out
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LIMBECK_ALLOCATOR", "system")  # commands run in this process must not change how it frees memory
if not os.environ.get("CC") and not any(map(shutil.which, ("cc", "gcc", "clang"))):
    os.environ.setdefault("LIMBECK_NATIVE", "off")  # its warning would be an error in every test that generates

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from limbeck import cli  # noqa: E402
from limbeck.kernels import native  # noqa: E402
from tests.reference.commands import Limbeck, Said  # noqa: E402

settings.register_profile(
    "limbeck", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
native.load()  # compiled before the first test, not within one
settings.load_profile("limbeck")  # shared machines are slow at times; that is no failure


@pytest.fixture(scope="module", autouse=True)
def _same_start_of_what_a_module_shares() -> None:
    """What a module's tests share, such as a model, is drawn from the same seed whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Every test starts from one seed and counts its threads, whatever ran before it."""
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Limbeck:
    """Run one command in this process: ``limbeck("info", model)``."""
    monkeypatch.setattr(cli, "_hush", lambda: None)  # warnings stay errors in this process

    def call(*argv: object) -> Said:
        code = cli.main([str(a) for a in argv])
        got = capsys.readouterr()
        return Said(code, got.out, got.err)

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data: LIMBECK_DATA, or ../shared/data beside the repository; skips where there is none."""
    named = os.environ.get("LIMBECK_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set LIMBECK_DATA to its folder")
    return folder
