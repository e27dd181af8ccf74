"""What the edge keeps and what it sends: the ring of raw frames, and the representation."""
