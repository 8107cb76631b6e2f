"""What the commands around the daemon are made of: sending logs, watching lists, replaying dead letters."""
