"""Keyed permutations of any range, computed element by element: shuffling billions of blocks takes no memory.

A Feistel network splits a number of 2b bits into halves (L, R) and maps them, round by round, to (R, L xor F(R, key)). Every
round is invertible whatever F is, so this is a bijection of range(2^2b); with four or more rounds and a random F it cannot
be told from a random permutation (Luby and Rackoff 1988). Results beyond the wanted range are sent through it again until
they fall within (cycle walking, Black and Rogaway 2002): b is the smallest with 2^2b >= size, so 2^2b <= 4 size, and at most
four passes are needed on average. All arithmetic is in 64-bit integers, so the order is the same on any machine.
"""

import numpy as np

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def scramble(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection uint64 -> uint64 that mixes all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*parts) -> np.ndarray:
    """uint64 keys hashed from integers >= 0, each part a number or an array."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = scramble(key + np.atleast_1d(np.asarray(part, np.uint64)) + np.uint64(GOLDEN))
    return key


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Images (N,) int64 of `values` (N,) under the permutations of range(size) with `keys` (one, or one per value)."""
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    result, keys = np.array(values, np.uint64), np.broadcast_to(keys, len(values))
    outside = np.arange(len(values))
    while len(outside):
        left, right = result[outside] >> shift, result[outside] & mask
        key = keys[outside]
        for step in range(1, ROUNDS + 1):
            left, right = right, left ^ (scramble(right + key * np.uint64(2 * step + 1)) & mask)
        moved = left << shift | right
        result[outside] = moved
        outside = outside[moved >= size]
    return result.astype(np.int64)
