"""Mutants that compute the same as what they were made of: the changed line of each, and why no test can tell it."""

EQUIVALENT: dict[str, str] = {
    'copysign = _define("copysign", lambda g, y, a, b: (g * (sign(a) / copysign(1, b)), None))': "copysign is 1 or -1",
    "left, right = where(x <= 0, x, 0), where(x < 0, 0, x)": "x is 0 where the conditions differ",
}
