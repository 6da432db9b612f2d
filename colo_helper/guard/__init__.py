"""Keeps xendomains, which starts a host's VMs when it boots, from those that are protected."""
