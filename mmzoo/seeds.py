"""Seeds for everything random: each a function of the numbers that name it, so nothing depends on what ran before."""

from __future__ import annotations

__all__ = ["mix"]

_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """Derive a 63-bit seed from integers; near inputs give unrelated seeds (the splitmix64 finaliser).

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
