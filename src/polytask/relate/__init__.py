"""Relate: which tasks help each other, and which to train together."""
