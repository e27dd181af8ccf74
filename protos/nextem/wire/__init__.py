"""How messages travel: the log, frame blocks and their codecs, the store, ids and clocks."""
