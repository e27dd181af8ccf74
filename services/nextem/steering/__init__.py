"""The steering service and its policies."""
