"""Going to the background, once the mount answers."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from ckfs.errors import CkfsError, MountFailed

log = logging.getLogger(__name__)

_UP = b"up"


def run_in_background(serve: Callable[[Callable[[], None]], None]) -> None:
    """Run *serve* in a process of its own and return when it reports to be ready. Raises what kept it from that."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        _be_daemon(serve, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        said = report.read()
    if said != _UP:
        raise _failure(said)


def _be_daemon(serve: Callable[[Callable[[], None]], None], writing: int) -> None:
    status, up = 1, False
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)

        def ready() -> None:
            nonlocal up
            up = True
            with contextlib.suppress(
                BrokenPipeError
            ):  # who waited has been killed; the mount is up all the same
                os.write(writing, _UP)
            os.close(writing)

        serve(ready)
        status = 0
    except CkfsError as error:
        if up:
            log.error("%s", error)  # noqa: TRY400 - not a bug
        else:
            os.write(writing, b"%d %s" % (error.exit_status, str(error).encode("utf-8", "backslashreplace")))
    except Exception:
        log.exception("the mount ended unexpectedly")
    finally:
        os._exit(status)  # no clean-up of the parent's, and no waiting for threads that a store holds


def _failure(said: bytes) -> CkfsError:
    status, _, line = said.decode("utf-8", "replace").partition(" ")
    for kind in CkfsError.__subclasses__():
        if status == str(kind.exit_status):
            return kind(line)
    return MountFailed(line or "the daemon ended before the mount came up: run it with -f to see why")
