"""What is and what happened: ``state.json``, ``events.jsonl``, and systemd's notifications."""
