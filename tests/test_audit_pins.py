"""The verdict of scripts/audit_pins.py on pip-audit's JSON, and what it says where no database can be reached."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "audit_pins.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_pins", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_known_weakness_fails_and_a_skipped_pin_is_counted(audit: ModuleType) -> None:
    flaw = {"id": "PYSEC-1", "fix_versions": ["1.1"]}
    pins = [
        {"name": "weak", "version": "1.0", "vulns": [flaw]},
        {"name": "sound", "version": "2.0", "vulns": []},
        {"name": "unknown", "skip_reason": "Dependency not found"},
    ]
    code, told = audit.verdict({"dependencies": pins})
    assert code == 1 and told[0] == "pip-audit: 2 of 3 pins looked up, 1 known weaknesses"
    assert told[1].startswith("pip-audit: 1 pins are unknown") and told[2] == "weak 1.0: PYSEC-1, mended in 1.1"
    code, told = audit.verdict({"dependencies": pins[1:2]})
    assert code == 0 and len(told) == 1


@pytest.mark.parametrize(("out", "code"), [("", 0), ('{"dependencies": []}', 0)])
def test_without_a_database_it_says_so(
    audit: ModuleType, out: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.CompletedProcess([sys.executable], 1, out, "trace\nConnectionError: no route")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main(Path("constraints.txt")) == code
    told = "no database can be reached, nothing was audited (ConnectionError: no route)"
    assert (told in capsys.readouterr().out) is (not out)
