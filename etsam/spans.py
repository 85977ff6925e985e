"""Lengths and how they are cut into spans: of slices into tiles, of feature maps into windows."""

import math


def spread(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Intervals of `size` that cover 0..length evenly, neighbours sharing at least `overlap`; one if that is enough."""
    if length <= size:
        return [(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


def next_multiple(length: int, step: int, least: int = 0) -> int:
    """Smallest multiple of `step` that is no less than `length` and `least`."""
    return -(-max(length, least) // step) * step
