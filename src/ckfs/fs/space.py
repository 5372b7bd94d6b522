"""What ``df`` shows: to root the store, to a user what of it is his."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from ckfs.policy import quota
from ckfs.policy.quota import Account


@dataclass(frozen=True, slots=True)
class Space:
    """As statvfs(3) has it: blocks of *block_bytes*, and files."""

    io_bytes: int
    block_bytes: int
    blocks: int
    free_blocks: int
    available_blocks: int
    files: int
    free_files: int
    available_files: int
    longest_name: int

    @classmethod
    def of_store(cls, there: os.statvfs_result) -> Space:
        return cls(
            io_bytes=there.f_bsize,
            block_bytes=there.f_frsize,
            blocks=there.f_blocks,
            free_blocks=there.f_bfree,
            available_blocks=there.f_bavail,
            files=there.f_files,
            free_files=there.f_ffree,
            available_files=there.f_favail,
            longest_name=there.f_namemax,
        )

    @property
    def total_bytes(self) -> int:
        return self.blocks * self.block_bytes

    def less_reserve(self, reserve_bytes: int) -> Space:
        """Without what is kept for root."""
        kept = -(-reserve_bytes // self.block_bytes)
        return replace(
            self,
            blocks=max(0, self.blocks - kept),
            free_blocks=max(0, self.free_blocks - kept),
            available_blocks=max(0, self.available_blocks - kept),
        )

    def of_owner(self, account: Account, now_ns: int) -> Space:
        """No more than *account*'s owner may have in all, and may have yet. Who may have nothing more has all that he may."""
        room, total = quota.room(account, now_ns), account.total
        space = self
        if room.bytes is not None:
            left = room.bytes // self.block_bytes
            space = replace(
                space,
                blocks=min(self.blocks, (total.bytes + room.bytes) // self.block_bytes),
                free_blocks=min(self.free_blocks, left),
                available_blocks=min(self.available_blocks, left),
            )
        if room.files is not None:
            files = total.files + room.files
            space = replace(
                space,
                # A store that counts no files (btrfs) says 0 of everything.
                files=min(self.files, files) if self.files else files,
                free_files=min(self.free_files, room.files) if self.files else room.files,
                available_files=min(self.available_files, room.files) if self.files else room.files,
            )
        return space
