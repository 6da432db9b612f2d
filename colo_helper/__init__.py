"""COLO fault-tolerant virtual machines on stock Xen: the program that runs on the hosts."""

__version__ = "0.1.0"
