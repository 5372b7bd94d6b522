"""What kernel and daemon agree on when a mount begins."""

from __future__ import annotations

from dataclasses import dataclass

from ckfs.transport.wire import abi, replies
from ckfs.transport.wire.abi import InitFlags
from ckfs.transport.wire.requests import Init

OLDEST_MINOR = 31
"""Linux 5.4 has it: writes say that they clear set-user-id bits. No system with Python 3.11 packaged is older (Debian 12 has 7.37). From 7.23 on no layout changed that :mod:`.requests` reads."""

BASE = (
    InitFlags.ASYNC_READ
    | InitFlags.AUTO_INVAL_DATA  # what another mount changed is read anew
    | InitFlags.ATOMIC_O_TRUNC  # else O_TRUNC is a SETATTR of its own, that another open may come before
    | InitFlags.BIG_WRITES
    | InitFlags.DO_READDIRPLUS  # always, not as the kernel sees fit: a listing has looked at every entry anyway
    | InitFlags.ASYNC_DIO  # checkpointers that write with O_DIRECT and libaio have their requests side by side
    | InitFlags.PARALLEL_DIROPS
    | InitFlags.MAX_PAGES
    | InitFlags.HANDLE_KILLPRIV_V2
    | InitFlags.INIT_EXT
)

NEVER = (
    InitFlags.WRITEBACK_CACHE  # a write that was answered must be with the daemon; and it rules out PASSTHROUGH
    | InitFlags.POSIX_ACL
    | InitFlags.EXPORT_SUPPORT  # lookups of "." and ".."
    | InitFlags.SETXATTR_EXT  # another layout than decode() reads
    | InitFlags.SECURITY_CTX  # before 7.38, the header does not count these extensions
    | InitFlags.OVER_IO_URING  # requests would not come by read(2)
)

_PAGES_UNASKED = 32
"""Of a request, where MAX_PAGES was not agreed."""
_LEAST_WRITE = 4096
_LARGEST_FIXED = abi.HEADER_IN.size + abi.COMPAT_SETXATTR_IN.size + 256 + 65536
"""The largest request that is no WRITE: SETXATTR. The kernel says E2BIG of one that the buffer has no room for."""


class TooOld(Exception):
    """The kernel's protocol is older than ckfs can speak; ``str()`` is one line for the administrator. Answer EPROTO."""


class TooNew(Exception):
    """The kernel's major version is newer: send *reply*, and it begins again with the one that ckfs speaks."""

    def __init__(self, major: int) -> None:
        super().__init__(f"the kernel speaks FUSE {major}, and is asked for {abi.MAJOR}")
        self.reply = replies.init(
            minor=abi.MINOR,
            max_readahead=0,
            flags=InitFlags(0),
            max_background=0,
            congestion_threshold=0,
            max_write=0,
            time_gran=0,
            max_pages=0,
            max_stack_depth=0,
            request_timeout_s=0,
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the daemon would like; the kernel may offer less."""

    max_write: int
    """Bytes of one WRITE; READ follows it."""
    max_readahead: int
    """Bytes."""
    max_background: int
    """Requests at a time that nobody waits for, such as reading ahead; 0 leaves the kernel's number."""
    congestion_threshold: int
    """From how many of them on the kernel thinks the daemon busy; 0 leaves the kernel's number."""
    time_gran: int = 1
    """Of times, in ns."""
    passthrough: bool = False
    locks: bool = False
    direct_io_allow_mmap: bool = False
    """Files opened with DIRECT_IO may be mapped shared."""
    request_timeout_s: int = 0
    """After which the kernel ends the mount; 0 for never."""
    page_bytes: int = 4096
    flags: InitFlags = BASE

    def __post_init__(self) -> None:
        if self.flags & NEVER:
            raise ValueError(f"never agreed on: {self.flags & NEVER!r}")

    def asked(self) -> InitFlags:
        flags = self.flags | InitFlags.INIT_EXT
        if self.locks:
            flags |= InitFlags.POSIX_LOCKS | InitFlags.FLOCK_LOCKS
        if self.passthrough:
            flags |= InitFlags.PASSTHROUGH
        if self.direct_io_allow_mmap:
            flags |= InitFlags.DIRECT_IO_ALLOW_MMAP
        if self.request_timeout_s > 0:
            flags |= InitFlags.REQUEST_TIMEOUT
        return flags


@dataclass(frozen=True, kw_only=True)
class Agreed:
    minor: int
    flags: InitFlags
    max_write: int
    """Bytes of one WRITE at most; fs.fuse.max_pages_limit may keep the kernel below it without a word."""
    max_pages: int
    max_readahead: int
    passthrough: bool
    request_timeout_s: int
    """0 for none."""

    @property
    def buffer_bytes(self) -> int:
        """The least buffer that takes any request: read(2) of /dev/fuse refuses a smaller one."""
        largest_write = abi.HEADER_IN.size + abi.WRITE_IN.size + self.max_write
        return max(abi.MIN_READ_BUFFER, _LARGEST_FIXED, largest_write)


def negotiate(init: Init, wanted: Wanted) -> tuple[Agreed, bytes]:
    """What is agreed, and the body of the reply that says so. Raises TooOld or TooNew."""
    if init.major > abi.MAJOR:
        raise TooNew(init.major)
    if (init.major, init.minor) < (abi.MAJOR, OLDEST_MINOR):
        raise TooOld(
            f"the kernel speaks FUSE {init.major}.{init.minor}, and ckfs needs {abi.MAJOR}.{OLDEST_MINOR}"
            " or later: use Linux 5.4 or newer"
        )
    flags = wanted.asked() & InitFlags(init.flags)
    if InitFlags.INIT_EXT not in flags:
        flags &= InitFlags((1 << 32) - 1)
    max_write, max_pages = _sizes(wanted, may_ask=InitFlags.MAX_PAGES in flags)
    agreed = Agreed(
        minor=min(init.minor, abi.MINOR),
        flags=flags,
        max_write=max_write,
        max_pages=max_pages,
        max_readahead=min(init.max_readahead, wanted.max_readahead),
        passthrough=InitFlags.PASSTHROUGH in flags,
        request_timeout_s=min(wanted.request_timeout_s, 65535) if InitFlags.REQUEST_TIMEOUT in flags else 0,
    )
    return agreed, replies.init(
        minor=agreed.minor,
        max_readahead=agreed.max_readahead,
        flags=agreed.flags,
        max_background=wanted.max_background,
        congestion_threshold=wanted.congestion_threshold,
        max_write=agreed.max_write,
        time_gran=wanted.time_gran,
        max_pages=agreed.max_pages if InitFlags.MAX_PAGES in flags else 0,
        max_stack_depth=int(
            agreed.passthrough
        ),  # 1: what is passed through lies on no stacked file system itself
        request_timeout_s=agreed.request_timeout_s,
    )


def _sizes(wanted: Wanted, *, may_ask: bool) -> tuple[int, int]:
    """The largest write in bytes, and the pages of a request that it takes."""
    most_pages = 65535 if may_ask else _PAGES_UNASKED
    max_write = max(_LEAST_WRITE, min(wanted.max_write, most_pages * wanted.page_bytes))
    pages = -(-max_write // wanted.page_bytes) if may_ask else _PAGES_UNASKED
    return max_write, pages
