"""The kernel's FUSE protocol as values: bytes in, values out, and back; nothing is read, written or awaited here.

The source of every number and layout is include/uapi/linux/fuse.h of Linux 6.18, protocol 7.45.
"""
