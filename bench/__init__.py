"""Benchmarks that need no lab: each compares with the plainest way to do the same, in the same run."""
