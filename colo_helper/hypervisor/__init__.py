"""One domain of the hypervisor: the interface, Xen behind it, and an emulated one for tests and scale."""
