"""Who is a job's owner? Every answer here is a known owner or *unknown*; never "gone"."""
