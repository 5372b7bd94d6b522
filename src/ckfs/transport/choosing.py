"""Which transport carries a mount's requests."""

from __future__ import annotations

import enum

from ckfs.fs.filesystem import Filesystem
from ckfs.transport.kernel import Kernel
from ckfs.transport.pyfuse import Pyfuse
from ckfs.transport.transport import Transport


class Wish(enum.Enum):
    """AUTO takes the kernel transport where the kernel is new enough, and pyfuse3 elsewhere."""

    AUTO = "auto"
    KERNEL = "kernel"
    PYFUSE3 = "pyfuse3"


def transports(wish: Wish, fs: Filesystem, *, passes: bool, request_timeout_s: int) -> list[Transport]:
    """What to try, one after the other, each with a mount of its own. *passes*: the kernel is asked for passthrough; *request_timeout_s*:
    and to end the mount if there is no answer for so long."""
    by_kernel, by_library = Kernel(fs, passes=passes, request_timeout_s=request_timeout_s), Pyfuse(fs)
    tried: dict[Wish, list[Transport]] = {
        Wish.AUTO: [by_kernel, by_library],
        Wish.KERNEL: [by_kernel],
        Wish.PYFUSE3: [by_library],
    }
    return tried[wish]
