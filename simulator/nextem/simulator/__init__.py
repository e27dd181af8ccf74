"""A microscope that obeys commands: specimens, diffraction, detector protocol, instrument."""
