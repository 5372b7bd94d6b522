"""How fast a mount is, against a plain directory beside its store: ``ckfs bench``."""
