"""The life of a mount's process: options, coming up, going down."""
