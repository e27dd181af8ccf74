"""Policies that choose from measured values, as commands to a live instrument."""
