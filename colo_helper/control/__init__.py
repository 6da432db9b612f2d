"""The local control socket: one JSON request a line, one JSON answer a line."""
