"""Process 1 of a demo node: names it, brings ``lo`` up, and lives until its standard input ends.

It stands alone, like every init: started by :mod:`ckfs.demo.nodes` in fresh mount, network, uts and pid namespaces.
When it ends the kernel kills every process of the node and takes the node's mounts away, so that nothing outlives
a demo, however that ends.

Usage: ``node_init.py NAME FIRST_PID``; says ``up`` on its standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
IFREQ = struct.Struct("16sH22x")
MNT_DETACH = 0x2  # linux/fs.h
OURS = b"fuse.ckfs"


def bring_up(interface: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = IFREQ.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, IFREQ.pack(interface, 0)))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, IFREQ.pack(interface, flags | IFF_UP))


def leave_mounts_to_the_host() -> None:
    """The node began with a copy of each mount, and a copy keeps a daemon running that the host has unmounted."""
    libc = ctypes.CDLL(None)
    with open("/proc/self/mountinfo", "rb") as mounts:
        lines = [line.split() for line in mounts]
    for words in reversed(lines):
        if words[words.index(b"-") + 1] == OURS:
            libc.umount2(words[4].decode("unicode_escape").encode("latin-1"), MNT_DETACH)


def main(name: str, first_pid: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the node are reaped by the kernel
    socket.sethostname(name)
    leave_mounts_to_the_host()
    bring_up(b"lo")
    # Two machines seldom number their processes alike; CRIU needs the pid of what it restores to be free.
    # A kernel without this file has no CRIU either.
    with contextlib.suppress(FileNotFoundError), open("/proc/sys/kernel/ns_last_pid", "w") as last_pid:
        last_pid.write(str(int(first_pid) - 1))
    os.write(1, b"up\n")
    while os.read(0, 4096):
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
