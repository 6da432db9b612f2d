"""At a host's boot, before anything starts VMs: which protected VM must not be started here, because its copy may be the VM."""
