"""What is computed from every frame in one pass."""
