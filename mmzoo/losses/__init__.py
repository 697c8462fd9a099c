"""Losses: pure functions of tensors that return NamedTuples."""
