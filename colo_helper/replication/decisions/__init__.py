"""Decisions of both sides: pure functions of what is known, which say what to do and why in one sentence."""
