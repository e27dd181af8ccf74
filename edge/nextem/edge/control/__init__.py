"""The only authority over the instrument: leases, limits, journal, driver."""
