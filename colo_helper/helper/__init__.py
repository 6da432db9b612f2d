"""The save/restore helper that libxl runs, and its parent's side: argv, messages, engines, back channel."""
