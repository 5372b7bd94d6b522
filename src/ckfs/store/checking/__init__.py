"""``ckfs fsck``: what must hold in a store, what does not, and how that is mended without removing any image."""
