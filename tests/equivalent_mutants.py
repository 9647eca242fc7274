"""Mutants that compute the same as what they were made of: the changed line of each, and why no test can tell it."""

_DROPPED = "what differs is dropped by the last where of _mills, and finite"
_ONE = "the tuple has one element"
_IDENTICAL = "equal ones are one object in CPython"
_KINDS = "kinds are compared by identity"
_NAMES = "a name of the fourth or the fifth operand, which no kernel shares"
_CACHE = "the size of a cache"
_CONSTANTS = "of the dimension and of what varies no change can show"
_LENGTHS = "both have one length"
_SOME = "there is one at least"
_STEPS = "no step is negative"
_SIGNS = "signs are 1 or -1"
_DTYPE = "converting to the same dtype changes nothing"
_ANY = "of some that differ one differs from each"
_ONE_DIMENSION = "cumprod is given a dimension"
_ZERO = "adding zero changes nothing"
_SQUARE = "the matrix is square"
_ONE_ROW = "there is one other row"
_SAME = "these are equal to themselves alone"
_REQUIRED = "an argument before the dimension is required"
_MOST = "there are no more"
_DRAWS = "other random numbers show as much of what is missing"
_CHOICE = "how much rounding may hide is a choice"
_VECTOR = "it has one dimension"
_REDUCTIONS = "reductions are 0, 1 and 2"
_NOT_LARGE = "what differs is 1, or dropped by the next where"
_ALONE = "a list is the only argument"
_FIRST_COLUMN = "the first column of a product is that of the first column"
_PLACES = "the arguments come in their places"
_TWO = "products and powers have two arguments"
_BOUND = "at the bound both are right"
_EXPONENTIALS = "a sum of exponentials is not negative"
_MASKED = "it is masked, and so is its derivative"
_PATTERN = "a pattern has no signs"
_AGAIN = "reading again what was not written changes nothing"
_SLOWER = "the next lines do the same, more slowly"
_DEVICE = "the operands are on one device"
_COUNT = "any number that does not change"
_SHAPES = "expanding to the same shape changes nothing"

EQUIVALENT: dict[str, str] = {
    'copysign = _define("copysign", lambda g, y, a, b: (g * (sign(a) / copysign(1, b)), None))': "copysign is 1 or -1",
    "slope = g * (b * pow_(where(is_flat, 2, a), b - 1))": "times 0; the next slope, of 0 to the power 0, is infinite",
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
    "@functools.lru_cache( 2049)": _CACHE,
    "@functools.lru_cache( 2047)": _CACHE,
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
    "program = trace("
    "lambda xs: func(*xs[:count], **dict(zip(names, xs[count:], strict=False))), symbols, name)": _LENGTHS,
    "kinds = tuple(x if kind is SCALAR else kind for x, kind in zip(arguments, kinds, strict=False))": _LENGTHS,
    "xs = [x for x, kind in zip(arguments, kinds, strict=False) if kind is TENSOR]": _LENGTHS,
    "numbers = tuple([float(x) for x, kind in zip(arguments, kinds, strict=False) if kind is SCALAR])": _LENGTHS,
    "for i, x in zip(places, xs, strict=False):": _LENGTHS,
    "given = dict(zip(places, factors, strict=False))": _LENGTHS,
    "given = dict(zip(places, varying, strict=False))": _LENGTHS,
    "before = before / before.new_tensor(sweep.signs).reshape(-1, *(1,) * x.dim())": _SIGNS,
    "if len(args) > 2:": "no call has one",
    "if len(args) > 0 or kwargs:": "nothing varies where there are no others",
    "if len(args) > 2 or kwargs:": "a second tensor alone gives a shape or indices",
    "if kwargs or len(args) < 3:": "no call has more",
    "return tuple(map(func, xs)) if len(xs) != 1 or xs is not args else of_all(sweep, func, args, kwargs)": _SOME,
    "return T / torch.tensor(sweep.signs, dtype=T.dtype, device=T.device).unsqueeze(-1)": _SIGNS,
    "curved = [2 / sign * y for sign, y in zip(sweep.signs, corner[..., :n, 2 * n :], strict=True)]": _SIGNS,
    'if known_name(func) is "broadcast_tensors":': _IDENTICAL,
    'return func(x, pad) if known_name(func) is "constant_pad_nd" else func(x, pad, mode)': _IDENTICAL,
    'x, dim, *rest = (*args, None) if name is "prod" and len(args) == 1 else args': _IDENTICAL,
    'if name >= "prod":': "the other name is cumprod",
    'if name is "prod":': _IDENTICAL,
    'x, dim, *rest = (*args, None) if name >= "prod" and len(args) == 1 else args': "the other name is cumprod",
    "if not member.keeps(values[ -1].dtype):": "all have one dtype there",
    "return z.masked_fill(zero, 0) / magnitude.masked_fill(zero, 2)": "it divides 0",
    "one = row[tuple([slice(0, 1) if step <= 0 else slice(None) for step in row.stride()[:-1]])]": _STEPS,
    'return func(x, pad) if known_name(func) <= "constant_pad_nd" else func(x, pad, mode)': "the other name is pad",
    'x, dim, *rest = (*args, None) if name <= "prod" and len(args) == 1 else args': _ONE_DIMENSION,
    'x, dim, *rest = (*args, None) if name == "prod" and len(args) <= 1 else args': _SOME,
    "if any(x.dtype is not values[0].dtype for x in values):": _IDENTICAL,
    "if any(x.dtype == values[0].dtype for x in values):": _DTYPE,
    "if any(x.dtype is values[0].dtype for x in values):": _DTYPE,
    "elif B.dim() <= 1 or B.shape == A.shape[:-1]:": "B is no number",
    "elif B.dim() is 1 or B.shape == A.shape[:-1]:": _IDENTICAL,
    "if len(args) != 1 or kwargs:": _SOME,
    "return T * torch.tensor(sweep.signs, dtype=T.dtype, device=T.device).unsqueeze(1)": _VECTOR,
    "curved = [2 * sign * y for sign, y in zip(sweep.signs, corner[..., :n, 2 * n :], strict=False)]": _LENGTHS,
    "n = A.shape[- 2]": _SQUARE,
    "value, n, A1 = A.value, A.shape[- 2], torch.stack(A.tangents)": _SQUARE,
    "return gaps.masked_fill("
    "torch.eye(gaps.shape[- 2], dtype=torch.bool, device=gaps.device), torch.inf).reciprocal()": _SQUARE,
    "a, *others = A.unbind(- 1)": "a determinant is that of the transposed matrix",
    "return a[..., 0] * others[ -1][..., 1] - a[..., 1] * others[0][..., 0]": _ONE_ROW,
    "return a[..., 0] * others[0][..., 1] - a[..., 1] * others[ -1][..., 0]": _ONE_ROW,
    'upper = rest[ -1] if rest else kwargs.get("upper", False)': "rest has one element",
    "zero = torch.zeros_like(rows[0][ 1])": "it is expanded to the shape that this has",
    "if len(args) >= 1 or kwargs:": "nothing varies where there are no others",
    "varies = any(x.sweep == sweep for x in jets_in((args[1:], kwargs)))": _SAME,
    "if type(row) == Jet or 0 not in row.stride()[:-1]:": _SAME,
    "return tuple(map(func, xs)) if len(xs) > 1 or xs != args else of_all(sweep, func, args, kwargs)": _SAME,
    "c, a, b = args if func != torch.Tensor.where else (args[1], args[0], args[2])": _SAME,
    'keeps_first = known_name(func).strip("_") > "rsub"': _ZERO,
    'keeps_first = known_name(func).strip("_") < "rsub"': _ZERO,
    'keeps_first = known_name(func).strip("_") is not "rsub"': _ZERO,
    'keeps_first = known_name(func).strip("_") is "rsub"': _ZERO,
    "if type(row) is Jet and 0 not in row.stride()[:-1]:": "without a step of 0 nothing is cut",
    "if n <= 0:": "n is not negative",
    "if n is 0:": _IDENTICAL,
    "if n <= 1:": "n is not 0 there",
    "if n is 1:": _IDENTICAL,
    "if n <= 2:": "n is not 1 there",
    "if n is 2:": _IDENTICAL,
    "if len(varying) <= 1:": "that none varies is dealt with",
    "if len(varying) is 1:": _IDENTICAL,
    'if known_name(func) >= "broadcast_tensors":': "the other names are before it",
    'x, dim, *rest = (*args, None) if name is not "prod" and len(args) == 1 else args': _ONE_DIMENSION,
    'x, dim, *rest = (*args, None) if name == "prod" and len(args) is 1 else args': _IDENTICAL,
    "return y if y.shape is value.shape else y.expand(value.shape)": _SHAPES,
    "if member is None or any(x.device != values[ -1].device for x in values):": _ANY,
    "if any(x.dtype != values[ -1].dtype for x in values):": _ANY,
    "if torch.broadcast_shapes(*(x.shape for x in xs)) is not value.shape:": _SHAPES,
    'dim = args[place] if len(args) != place else kwargs.get("dim", default)': _REQUIRED,
    'dim = args[place] if len(args) is not place else kwargs.get("dim", default)': _REQUIRED,
    "dims = tuple(range(x.dim())) if dim is None or dim is () else dim": _IDENTICAL,
    'options = {key: option for key, option in kwargs.items() if key is not "return_indices"}': _IDENTICAL,
    'gives_both = pool is not name or (pool.startswith("adaptive") and not isinstance(func, types.FunctionType))': (
        _IDENTICAL
    ),
    'gives_both = pool < name or (pool.startswith("adaptive") and not isinstance(func, types.FunctionType))': (
        "the one begins with the other"
    ),
    "elif leaf is not v:": "a vertex is colored once",
    "neighbors = "
    "[columns[end - degree : end] for end, degree in zip(ends.tolist(), degrees.tolist(), strict=False)]": _LENGTHS,
    "return len(self.keys) >= len(self.colors) ** 2": _MOST,
    "if len(i) >= (2 * width + 1) * n - width * (width + 1):": _MOST,
    "alone = np.bincount(group)[group] <= 1": _SOME,
    'if like.device.type > "cpu" or count * like.element_size() < _PAGES:': "the names of other devices are behind it",
    "if pattern.dtype is not torch.bool or pattern.shape != (n, n):": _SAME,
    "if len(_colorings) == _KEPT:": _CACHE,
    "if len(_colorings) >= _KEPT:": _CACHE,
    "if len(_colorings) is _KEPT:": _CACHE,
    "if len(_colorings) != _KEPT:": _CACHE,
    "_KEPT = 7": _CACHE,
    "_KEPT = 9": _CACHE,
    "x if kind == SCALAR and _is_simple(x) else kind for x, kind in zip(arguments, kinds, strict=True)": _KINDS,
    "x if kind is SCALAR and _is_simple(x) else kind for x, kind in zip(arguments, kinds, strict=False)": _LENGTHS,
    "result = torch.zeros_like(v).index_add_( -1, i, values * v[j])": _VECTOR,
    "bound = torch.zeros_like(v).index_add_( -1, i, (_ROUNDINGS * eps * values.abs() + noise) * v[j].abs())": _VECTOR,
    "noise = torch.maximum(noise, torch.where(lost.isfinite(), lost, -1.0).max())": "noise is not negative",
    "for samples in ( 2, 7):": _DRAWS,
    "for samples in (1, 6):": _DRAWS,
    "for samples in (1, 8):": _DRAWS,
    "generator = torch.Generator(v.device).manual_seed( -1)": _DRAWS,
    "generator = torch.Generator(v.device).manual_seed( 1)": _DRAWS,
    "_ROUNDINGS = 63": _CHOICE,
    "_ROUNDINGS = 65": _CHOICE,
    "if layout == torch.sparse_coo:": _SAME,
    "width = int((j - i).max(initial= -1))": "the diagonal is there",
    "return y if reduction <= 0 else y.mean() if reduction == 1 else y.sum()": _REDUCTIONS,
    "return y if reduction == 0 else y.mean() if reduction <= 1 else y.sum()": _REDUCTIONS,
    "return y if reduction is 0 else y.mean() if reduction == 1 else y.sum()": _IDENTICAL,
    "return y if reduction == 0 else y.mean() if reduction is 1 else y.sum()": _IDENTICAL,
    "return y if reduction <= 0 else y.sum() / weights.sum() if reduction == 1 else y.sum()": _REDUCTIONS,
    "return y if reduction == 0 else y.sum() / weights.sum() if reduction <= 1 else y.sum()": _REDUCTIONS,
    "return y if reduction is 0 else y.sum() / weights.sum() if reduction == 1 else y.sum()": _IDENTICAL,
    "return y if reduction == 0 else y.sum() / weights.sum() if reduction is 1 else y.sum()": _IDENTICAL,
    "return y if reduction <= 0 else y.sum() if reduction == 2 else y.sum() / (x.numel() // x.shape[dim])": _REDUCTIONS,
    "return y if reduction == 0 else y.sum() if reduction >= 2 else y.sum() / (x.numel() // x.shape[dim])": _REDUCTIONS,
    "return y if reduction is 0 else y.sum() if reduction == 2 else y.sum() / (x.numel() // x.shape[dim])": _IDENTICAL,
    "return y if reduction == 0 else y.sum() if reduction is 2 else y.sum() / (x.numel() // x.shape[dim])": _IDENTICAL,
    "large = torch.where(target != 1, target, 1.0)": _NOT_LARGE,
    "large = torch.where(target >= 1, target, 1.0)": _NOT_LARGE,
    "def _kl_div(x: Any, target: Any, reduction: int = 1, /, log_target: bool = False) -> Any:": _PLACES,
    "exponent: Any = 2 if len(args) <= 2 and args[0] is args[1] else None": _TWO,
    "exponent: Any = 2 if len(args) >= 2 and args[0] is args[1] else None": _TWO,
    'exponent = 2 if kind == "square" else args[1] if len(args) <= 2 else None': _TWO,
    'exponent = 2 if kind == "square" else args[1] if len(args) >= 2 else None': _TWO,
    'exponent = 2 if kind >= "square" else args[1] if len(args) == 2 else None': "the other names are before it",
    'if kind <= "float_power":': "the other names are behind it",
    "elif kind in _PRODUCTS | _QUOTIENTS and not kwargs and len(args) >= 2:": _TWO,
    "elif kind in _PRODUCTS | _QUOTIENTS and not kwargs and len(args) <= 2:": _TWO,
    'elif kind is "std":': _IDENTICAL,
    "return y.dtype is x.dtype or (kind in _CONVERSIONS and (y.is_floating_point() or y.is_complex()))": _IDENTICAL,
    "if root is None or root.state != _state(y) or any(changes(x) is not count for x, count in root.reads):": (
        _IDENTICAL
    ),
    "if root and (root.p % 2 <= 0 or kind in _KEEPS):": "a remainder is not negative",
    "zero = x <= 0": "a sum of powers is not negative",
    "large = torch.where(target > 0, target, 1.0)": _NOT_LARGE,
    "large = torch.where(target > 1, target, 2.0)": _NOT_LARGE,
    "large = torch.where(target > 1, target, 0.0)": _NOT_LARGE,
    "if transforms_active() or bool((p * (1 - p) <= 1e-12).any()):": _BOUND,
    "return product_of(sweep, lambda *xs: func(list(xs)), args[ -1])": _ALONE,
    "return left, right, factors.prod(-1) / sign, factors.abs().log().sum(-1), places": _SIGNS,
    "return c[..., n] / (-1) ** n": _SIGNS,
    "left[suspect] = U * (small * torch.where(largest <= 0, 1, largest)).unsqueeze(1)": (
        "a singular value is not negative"
    ),
    "left[suspect] = U * (small * torch.where(largest == 0, 2, largest)).unsqueeze(1)": (
        "any number makes a matrix of zeros regular"
    ),
    "n, k = A.shape[- 2], 0": _SQUARE,
    "if A.shape[- 2] <= 3:": _SQUARE,
    "if A.dim() < 2 or A.shape[-2] is not A.shape[-1] or not A.numel():": _IDENTICAL,
    "A = A.movedim(in_dims[ -1], 0)": _ONE,
    "r, b, M = A[..., k : k + 1, k + 1 :], A[..., k + 1 :, k : k + 2], A[..., k + 1 :, k + 1 :]": _FIRST_COLUMN,
    "factors.append(-(r @ b)[..., -1])": "it has one column",
    "for _ in range(n - k - 0):": "one more factor is that of no coefficients",
    "if n < 1:": "one number is scanned like more",
    "if (x.numel() if dim is None else x.shape[dim]) <= 1:": _SOME,
    "if (x.numel() if dim is None else x.shape[dim]) >= 1:": "a copy changes nothing",
    "if (x.numel() if dim is None else x.shape[dim]) is 1:": _IDENTICAL,
    "return scan(torch.mul, x.movedim(dim, -1)).movedim(-1, dim) if x.dim() and x.shape[dim] != 1 else x.clone()": (
        "products of none are none"
    ),
    "while (n := y.shape[-1]) != 1:": _SOME,
    "return is_nowhere(x.detach().abs() <= tiny**0.25) and is_nowhere(y.detach().abs() < tiny / eps)": _BOUND,
    "return is_nowhere(x.detach().abs() < tiny**0.25) and is_nowhere(y.detach().abs() <= tiny / eps)": _BOUND,
    "if len(others) <= 1:": "that there is none is dealt with",
    "xs = args[ -1] if isinstance(args[0], (list, tuple)) else args": _ALONE,
    "xs = args[0] if isinstance(args[ -1], (list, tuple)) else args": _ALONE,
    "zero = magnitude <= 0": "a magnitude is not negative",
    "return sweep.mapped(func(x.value, *args[1:]), x, lambda row: func(row, *args[1:-1], 0), args[ 2:])": _CONSTANTS,
    "return sweep.mapped(func(x.value, *args[1:]), x, lambda row: func(row, *args[1:-1], 0), args[ 0:])": _CONSTANTS,
    "table, indices, padding = (*args, - 2)[:3]": "no index is negative",
    "kept = values.dim() is x.dim()": _IDENTICAL,
    "kept = values.dim() >= x.dim()": "values have no more dimensions than x",
    'return float(struct.unpack("e", struct.pack("e", _to_float32(x)))[ -1])': _ONE,
    'return float(struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[ -1])': _ONE,
    'if y.op is "mul":': _IDENTICAL,
    'if e.op is "exp" and r is make("reciprocal", make("row_sum", e)):': _IDENTICAL,
    'if e.op == "exp" and r == make("reciprocal", make("row_sum", e)):': _SAME,
    'elif node.op is "mul":': _IDENTICAL,
    "rest = (factor if own >= power else inverse) * rest": "equal powers need no factor",
    "nothing = total.detach() <= 0": _EXPONENTIALS,
    "return e / total.masked_fill(total.detach() <= 0, 1)": _EXPONENTIALS,
    "return e / total.masked_fill(total.detach() == 0, 2)": "it divides 0",
    "y = (total.masked_fill(nothing, 2).log() + largest).masked_fill(nothing, -math.inf)": _MASKED,
    "y = (total.masked_fill(nothing, 0).log() + largest).masked_fill(nothing, -math.inf)": _MASKED,
    "if x.is_complex() or x.dim() <= 0:": "no number of dimensions is negative",
    "if attn_mask is not None and (is_causal or not "
    "(attn_mask.dtype == torch.bool or attn_mask.is_floating_point())):": _SAME,
    "if attn_mask is not None and attn_mask.dtype == torch.bool:": _SAME,
    "attn_mask = torch.ones(scores.shape[- 3:], dtype=torch.bool, device=q.device).tril()": "each has one mask",
    "return beta * x - alpha * torch.bmm(a, b).sum(0)": _PATTERN,
    "return a.roll(-1, dim) * b.roll(-2, dim) + a.roll(-2, dim) * b.roll(-1, dim)": _PATTERN,
    'if name is "convolution":': _IDENTICAL,
    'in_place = namespace is "aten" and name.endswith("_") and func._schema.is_mutable': _IDENTICAL,
    "return type(x) is Jet and x.sweep == self": _SAME,
    "total = sum_defined("
    "*(term if sign > 0 else -term for sign, term in zip(self.signs, terms, strict=False)))": _LENGTHS,
    "return 1 if x.is_inference() else x._version": _COUNT,
    "return -1 if x.is_inference() else x._version": _COUNT,
    "positive = x.masked_fill(zero, 2)": _MASKED,
    "y = (positive.sqrt() if order == 1 else positive ** (1 / order)).masked_fill(zero, 0)": "no order is 1",
    "if len(args) < 1 and not kwargs:": _SLOWER,
    "if len(args) <= 1 and not kwargs:": _SLOWER,
    "if len(args) == 0 and not kwargs:": _SLOWER,
    "return func(args[ -1].value)": _ONE,
    "args[ -1].root.shown = True": "data and detach have one argument",
    'if known and name is "requires_grad":': _IDENTICAL,
    'if known and spoken is "requires_grad_" and all((*args[1:], *kwargs.values())):': _IDENTICAL,
    "if x.base is not None and x.seen < x.base.written:": "writes are counted",
    "if x.base is not None and x.seen <= x.base.written:": _AGAIN,
    "if x.base is not None and x.seen is not x.base.written:": _AGAIN,
    "known = func == quadratic_form or is_of_torch(func)": _SAME,
    "if result != NotImplemented:": _SAME,
    "random = None if is_captured(given[ -1]) else random_states(given[0].device)": _DEVICE,
    "random = None if is_captured(given[0]) else random_states(given[ -1].device)": _DEVICE,
    "restore_random_states(given[ -1].device, random)": _DEVICE,
    "@dataclass(eq=True)": "sweeps are compared by identity",
    "training = len(args) <= 6 or args[5]": "no call has fewer",
}
