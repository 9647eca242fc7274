"""Mutants that compute the same as what they were made of: the changed line of each, and why no test can tell it."""

_DROPPED = "what differs is dropped by the last where of _mills, and finite"
_ONE = "the tuple has one element"
_IDENTICAL = "equal ones are one object in CPython"
_KINDS = "kinds are compared by identity"
_NAMES = "a name of the fourth or the fifth operand, which no kernel shares"
_CACHE = "the size of a cache"
_SHAPES = "expanding to the same shape changes nothing"

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
    "@functools.lru_cache( 1025)": _CACHE,
    "@functools.lru_cache( 1023)": _CACHE,
    'tensor(("input", "other", "end", "weight")[i] if i < 3 else f"x{i}")': _NAMES,
    'tensor(("input", "other", "end", "weight")[i] if i < 5 else f"x{i}")': _NAMES,
    'tensor(("input", "other", "end", "weight")[i] if i <= 4 else f"x{i}")': _NAMES,
    'tensor(("input", "other", "end", "weight")[i] if i != 4 else f"x{i}")': _NAMES,
    'tensor(("input", "other", "end", "weight")[i] if i is not 4 else f"x{i}")': _NAMES,
    "if kind == TENSOR": _KINDS,
    "if kind == SCALAR": _KINDS,
    "xs = [x for x, kind in zip(arguments, kinds, strict=True) if kind == TENSOR]": _KINDS,
    "kinds = tuple(x if kind == SCALAR else kind for x, kind in zip(arguments, kinds, strict=True))": _KINDS,
    "numbers = tuple([float(x) for x, kind in zip(arguments, kinds, strict=True) if kind == SCALAR])": _KINDS,
    "if any(x.dtype is not values[0].dtype for x in values[1:]):": _IDENTICAL,
    "if torch.broadcast_shapes(*(x.shape for x in xs)) is not value.shape:": _SHAPES,
    "zero = magnitude <= 0": "a magnitude is not negative",
    "kept = values.dim() is x.dim()": _IDENTICAL,
    "kept = values.dim() >= x.dim()": "values have no more dimensions than x",
    'return float(struct.unpack("e", struct.pack("e", _to_float32(x)))[ -1])': _ONE,
    'return float(struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[ -1])': _ONE,
}
