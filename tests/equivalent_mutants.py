"""Mutants that compute the same as what they were made of: the changed line of each, and why no test can tell it."""

_DROPPED = "what differs is dropped by the last where of _mills, and finite"
_ONE = "the tuple has one element"

EQUIVALENT: dict[str, str] = {
    'copysign = _define("copysign", lambda g, y, a, b: (g * (sign(a) / copysign(1, b)), None))': "copysign is 1 or -1",
    "slope = g * (b * pow_(where(and_(eq(b, 0), not_(abs_(a) > 0)), 2, a), b - 1))": "it stands for 0 and nan, times 0",
    "left, right = where(x <= 0, x, 0), where(x < 0, 0, x)": "x is 0 where the conditions differ",
    "left, right = where(x < 1, x, 0), where(x < 0, 0, x)": _DROPPED,
    "left, right = where(x < 0, x, 1), where(x < 0, 0, x)": _DROPPED,
    "left, right = where(x < 0, x, -1), where(x < 0, 0, x)": _DROPPED,
    "left, right = where(x < 0, x, 0), where(x < -1, 0, x)": _DROPPED,
    "left, right = where(x < 0, x, 0), where(x < 0, 1, x)": _DROPPED,
    "left, right = where(x < 0, x, 0), where(x < 0, -1, x)": _DROPPED,
    'return float(struct.unpack("f", struct.pack("f", x))[ -1])': _ONE,
    'return float(struct.unpack("e", struct.pack("e", _to_float32(x)))[ -1])': _ONE,
    'return float(struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[ -1])': _ONE,
}
