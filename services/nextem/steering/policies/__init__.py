"""Policies that choose from measured values: active learning, autofocus, drift, sparse scanning."""
