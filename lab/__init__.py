"""The lab: two real Xen hosts in QEMU, on any Linux machine, reset in seconds."""
