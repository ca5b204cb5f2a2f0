"""Limits of a fuzzed case: an error of ours or none, five seconds of processor time, a gigabyte of memory."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError

__all__ = ["CASES", "bounded", "fuzzed", "mutated"]

CASES = int(os.environ.get("FUZZ_CASES", "200"))
"""Cases a target: ``make fuzz`` sets 10,000."""

_SECONDS, _BYTES = 5.0, 1 << 30
F = TypeVar("F", bound=Callable[..., Any])


def fuzzed(function: F) -> F:
    """Run a target on ``CASES`` cases, the same ones each time."""
    checks = [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ]
    return settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=checks, database=None)(
        function
    )


class _Hang(BaseException):
    """Five seconds are over."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise _Hang


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def bounded(*allowed: type[Exception]) -> Iterator[None]:
    """Fail on an error that is not ours, on a message of several lines, on a hang, and on memory without bound."""
    before = _peak_bytes()
    held = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (LimbeckError, *allowed) as error:
        message = str(error)
        assert message and "\n" not in message, f"no one sentence: {message!r}"
    except _Hang:
        raise AssertionError(f"it ran for more than {_SECONDS} s of processor time") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, held)
    grown = _peak_bytes() - before
    assert grown < _BYTES, f"it took {grown / 1e6:.0f} MB"


def mutated(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """One of ``seeds`` with some bytes replaced, cut, doubled, or put in; now and then any bytes."""
    alphabet = st.one_of(
        st.binary(min_size=1, max_size=6),
        st.sampled_from(
            [
                b"\x00",
                b"\xff" * 8,
                b'"',
                b"{",
                b"[" * 200,
                b"\r",
                b"\n",
                b"NaN",
                b"-1",
                b"9" * 30,
                b"\xed\xa0\x80",
                b"null",
                b"1e999",
                b"\\ud800",
                b"\t",
                b",",
                b"\xef\xbb\xbf",
            ]
        ),
    )
    change = st.tuples(st.sampled_from(["set", "cut", "put", "double", "end"]), st.floats(0, 1), alphabet)
    some = st.builds(_changed, st.sampled_from(seeds), st.lists(change, min_size=1, max_size=5))
    return st.one_of(some, some, some, st.binary(max_size=60))


def _changed(seed: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    out = seed
    for kind, where, what in changes:
        at = int(where * len(out))
        if kind == "set":
            out = out[:at] + what + out[at + len(what) :]
        elif kind == "cut":
            out = out[:at] + out[at + len(what) * 3 :]
        elif kind == "put":
            out = out[:at] + what + out[at:]
        elif kind == "double":
            out = out[:at] + out[max(at - 20, 0) : at] * 3 + out[at:]
        else:
            out = out[:at]
    return out
