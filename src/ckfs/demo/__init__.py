"""``ckfs demo``: a process is checkpointed on one node and goes on counting on another."""

from ckfs.demo.story import run_demo

__all__ = ["run_demo"]
