"""The COLO proxy without I/O: packets and time go in; verdicts and rewritten packets come out."""
