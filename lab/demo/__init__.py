"""The main job on real Xen, from two fresh hosts to a failover that a client survives."""
