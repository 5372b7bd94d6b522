"""ckfs: one virtual checkpoint directory for a cluster."""

__version__ = "0.1.0"
