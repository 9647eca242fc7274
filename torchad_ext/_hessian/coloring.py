"""Star coloring: the columns of a symmetric matrix in few groups, from whose sums all entries can be read.

A coloring of the graph of the pattern is a star coloring if no path of four vertices has two colors only, so that
each pair of colors induces stars. A. Gebremedhin, F. Manne, A. Pothen, What color is your Jacobian? Graph coloring for
computing derivatives, SIAM Review 47 (2005); A. Gebremedhin, A. Tarafdar, F. Manne, A. Pothen, New acyclic and star
coloring algorithms with application to computing Hessians, SIAM Journal on Scientific Computing 29 (2007).
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def star_coloring(n: int, i: Array, j: Array, most: float = math.inf) -> Array | None:
    """The color of each of n vertices, for edges (i, j) in both directions, sorted; None for more than ``most``.

    Vertices are colored greedily, those of many neighbors first (Gebremedhin et al. 2007, algorithm 4.1). A set of
    colors is an integer, a bit for each, and each vertex keeps what its neighbors have to avoid, so that an edge is
    looked at four times in all.
    """
    others = i != j
    i, j = i[others], j[others]
    # Two colors induce a forest of stars, so that c colors have at most (c - 1) n edges.
    if len(i) > 2 * (most - 1) * n:
        return None
    degrees = np.bincount(i, minlength=n)
    ends, columns = np.cumsum(degrees), j.tolist()
    neighbors = [columns[end - degree : end] for end, degree in zip(ends.tolist(), degrees.tolist(), strict=True)]
    bits = [0] * n  # the color of each vertex
    # Colors that the neighbors of w have to avoid: those of the other neighbors while w has none, then that of w and
    # those of the centers of stars whose leaves are w and others of its color.
    avoided = [0] * n
    leaves: list[dict[int, int]] = [{} for _ in range(n)]  # a neighbor of each color
    for v in np.argsort(-degrees, kind="stable").tolist():
        forbidden = functools.reduce(operator.or_, map(avoided.__getitem__, neighbors[v]), 0)
        bit = ~forbidden & (forbidden + 1)
        if bit.bit_length() > most:
            return None
        bits[v] = avoided[v] = bit
        for w in neighbors[v]:
            leaf = leaves[w].setdefault(bit, v)
            if not bits[w]:
                avoided[w] |= bit
            elif leaf != v:
                avoided[v] |= bits[w]
                avoided[leaf] |= bits[w]
    return np.array([bit.bit_length() - 1 for bit in bits], dtype=np.int64)
