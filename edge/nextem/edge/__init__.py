"""Runs beside the microscope: receives frames, reduces them, publishes blocks, and guards the instrument."""
