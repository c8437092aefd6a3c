"""How long a client waits for a server that fails: between retries, and before it stops asking at all."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Patience:
    """The waits, in seconds, and how often.

    Attributes:
        first: longest wait before the first retry; each further retry may wait twice as long.
        longest: no wait is longer; a server that asks for more gets no further call for that question.
        failures: failures in a row after which nobody calls for a while.
        cooldown: how long that is.
        probes: single trial calls that may fail before the questions that wait are given up.
        repairs: new samples of an answer that does not satisfy its schema.
    """

    first: float = 0.5
    longest: float = 120.0
    failures: int = 8
    cooldown: float = 15.0
    probes: int = 3
    repairs: int = 2

    def wait(self, retry: int, told: float) -> float:
        """The wait before a retry: random, so that clients do not come back all at once, and no less than was told.

        Args:
            retry: 1 for the first.
            told: what the server asked for, 0 when it did not.
        """
        return told + random.uniform(0, min(self.longest, self.first * 2 ** (retry - 1)))


def seconds_of(header: str) -> float:
    """The seconds that a `Retry-After` header asks for: a number or a date; 0 when it is neither.

    Example:
        >>> seconds_of("2"), seconds_of("Wed, 21 Oct 2015 07:28:00 GMT"), seconds_of("")
        (2.0, 0.0, 0.0)
    """
    if header.strip().isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Permit:
    """What a breaker says to a caller.

    Attributes:
        go: call now.
        wait: else ask again after so many seconds; 0 means that the question is given up.
        probe: this call is the single trial of a server that was down.
    """

    go: bool
    wait: float = 0.0
    probe: bool = False


class Breaker:
    """Stops calling a server that is down, and finds out when it is back.

    Closed, everybody calls. After some failures in a row it opens: nobody calls for a cool-down, then one call goes
    out as a probe. Its success closes the breaker, its failure starts another cool-down. After some failed probes
    those who wait are turned away at once, and still one call after each cool-down tries.

    Args:
        patience: failures, cool-down and probes.

    Attributes:
        trouble: what the last failure was; empty when the server answers.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        self.trouble = ""
        self._failures = 0
        self._lost_probes = 0
        self._probing = False
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Calls are held back."""
        return self._open_until is not None

    def ask(self) -> Permit:
        """May a call go out?"""
        with self._lock:
            if self._open_until is None:
                return Permit(True)
            left = self._open_until - time.monotonic()
            if left <= 0 and not self._probing:
                self._probing = True
                return Permit(True, probe=True)
            if self._lost_probes >= self.patience.probes:
                return Permit(False)
            return Permit(False, max(left, self.patience.cooldown / 100))

    def report(self, permit: Permit, trouble: str) -> None:
        """How a permitted call ended: with trouble that means a server is down, or, when empty, with any answer."""
        with self._lock:
            if not trouble:
                self._close()
                return
            self.trouble = trouble
            self._failures += 1
            if permit.probe:
                self._probing = False
                self._lost_probes += 1
            if permit.probe or (self._open_until is None and self._failures >= self.patience.failures):
                self._open_until = time.monotonic() + self.patience.cooldown
