"""Waiting for a state, with a deadline: the only way these tests wait."""

import os
import time

# Sanitizer builds and busy machines: every deadline is multiplied by this.
SLOWDOWN = float(os.environ.get("BIM_TEST_SLOWDOWN", "1"))


def scaled(seconds):
    return seconds * SLOWDOWN


def wait_until(predicate, what, deadline=10.0, interval=0.02):
    """Returns the first true value of `predicate`; fails after `deadline` s.

    `what` says what was awaited; a callable is asked for it at the end, so
    that it can show what was seen last.
    """
    end = time.monotonic() + scaled(deadline)
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {scaled(deadline):.1f} s: {text}")
        time.sleep(interval)
