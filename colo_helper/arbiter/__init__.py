"""Who may run a VM: one record and one lease for each VM, kept where both hosts can ask and neither decides alone."""
