"""Figures of this host's VMs for Prometheus."""
