"""The one door to the backing file system. Everything here is synchronous and runs in worker threads only."""
