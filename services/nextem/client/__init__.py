"""The Python client: submit commands, watch, read products."""
