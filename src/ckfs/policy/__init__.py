"""Pure rules: no system, no clock, no event loop. They decide; the layers above and below do."""
