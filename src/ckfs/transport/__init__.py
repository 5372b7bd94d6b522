"""What carries the kernel's requests to the file system: decode, call, encode; nothing is decided here."""
