"""Keyed permutations of any range, computed element by element: an order of billions of blocks takes no memory.

A Feistel network (Luby and Rackoff 1988) is a bijection of the numbers of an even number of bits, whatever its round
function; those that fall beyond the range are sent through it again until they fall within (cycle walking, Black and Rogaway
2002), fewer than four times on average. All arithmetic is of 64-bit integers, so that the order is the same on any machine.
"""

import numpy as np

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


def scramble(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*parts) -> np.ndarray:
    """A uint64 key from whole numbers >= 0, each one or an array of them."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = scramble(key + np.atleast_1d(np.asarray(part, np.uint64)) + np.uint64(GOLDEN))
    return key


def permute(values: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where the permutations of range(size) with `keys` (one, or one a value) send `values` (N,): (N,) int64."""
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
