"""The forward and back channels: framing, the SSH client, the forced command's side."""
