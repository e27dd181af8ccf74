"""From encoded block to the log: spool on disk, then publish."""
