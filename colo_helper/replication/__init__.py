"""Replication of one VM: the primary, the secondary, and the pure decisions of both."""
