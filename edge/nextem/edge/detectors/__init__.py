"""What produces frames: one file for each vendor protocol, behind the ``Detector`` protocol."""
