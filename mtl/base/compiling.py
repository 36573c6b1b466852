"""Capturing graphs with torch (`torch.compile`, `torch.export`) where warnings are errors.

On Python 3.13.0 alone torch warns of each guard that it "may run slower" and that 3.13.1 is better. The caller cannot help it, and as an
error (`python -W error`) it ends the capture; `slow_guards_allowed` ignores exactly this warning.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_GUARDS = "Guards may run slower on Python 3.13.0"
# On other versions the filters do not change: a change makes Python forget which warnings it has shown already.
AFFECTED = sys.version_info[:3] == (3, 13, 0)


@contextmanager
def slow_guards_allowed() -> Iterator[None]:
    """Ignore torch's warning of slow guards inside the block; every other warning is treated as before."""
    if not AFFECTED:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SLOW_GUARDS, category=RuntimeWarning)
        yield
