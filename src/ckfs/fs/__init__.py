"""The file system itself, without FUSE in it: what each call means."""
