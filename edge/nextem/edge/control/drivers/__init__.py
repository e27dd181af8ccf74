"""Drivers of real instruments: one file a vendor, importable only where the vendor's library is."""
