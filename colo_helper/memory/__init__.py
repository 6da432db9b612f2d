"""Dirty bitmaps, their union and wire encoding, and the comparison of two copies of a guest's memory."""
