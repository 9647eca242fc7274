"""Mutants that compute the same as what they were made of: the changed line of each, and why no test can tell it."""

EQUIVALENT: dict[str, str] = {
    'copysign = _define("copysign", lambda g, y, a, b: (g * (sign(a) / copysign(1, b)), None))': "copysign is 1 or -1",
    "left, right = where(x <= 0, x, 0), where(x < 0, 0, x)": "x is 0 where the conditions differ",
    "slope = g * (b * pow_(where(and_(eq(b, 0), not_(abs_(a) > 0)), 2, a), b - 1))": "it stands for 0 and nan, times 0",
}
