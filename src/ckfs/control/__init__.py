"""What the file system's calls cannot carry: commands of users ask a mount's daemon through a socket."""
