"""What the edge does by itself when frames show something, with no cloud to ask."""
