"""What a site runs on its own file system before it trusts it with checkpoints: ``ckfs selftest`` (docs/selftest.md)."""
