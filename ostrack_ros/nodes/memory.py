"""Keep the C allocator from returning image-sized memory to the kernel after every message."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 32 << 20
_KEPT_FREE = 512 << 20


def keep_image_buffers() -> bool:
    """Serve blocks up to 32 MiB from the heap and keep what is freed there; True if that worked.

    By default glibc maps each large block anew, and the kernel zeroes its pages on first touch:
    for a 1080p stream that costs more than receiving the images. Call it before the first image.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
    )
