"""Analyses on Ray: plug-ins, workers in one consumer group, one reducer an acquisition."""
