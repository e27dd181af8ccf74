"""The command line; the only package that composes all the others."""
