"""Frame blocks: arrays in memory <-> ``nextem.v1.FrameBlock`` on the wire.

:func:`encode_block` and :func:`decode_block` are inverse, pixel by pixel; the tests draw every dtype and shape.
"""
