"""How this process deals with main memory."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h
KEPT = 2**28


def keep_freed_memory() -> None:
    """Tell the C allocator to keep up to 256 MiB of freed memory for the next tensor; nothing happens without glibc.

    By default large blocks go back to the system each time, and the next step gets them as fresh pages that must be zeroed: an eighth
    of a local step of a network with a large linear layer.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT)
        mallopt(MMAP_THRESHOLD, KEPT)
