"""Which operations are linear, move elements, or couple what they read; and the door for operations of one's own.

The forward Laplacian, the sparsity patterns and the curvature of many points read one table. Its names are those of
PyTorch's functions and of its ATen operators, each in one section. A section says what is so for every argument that
PyTorch takes; an operation of which more is known has a rule where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from ._torch_state import OpOverload, OpOverloadPacket

Kind = Literal["constant", "moves", "linear", "multilinear", "elementwise"]
Composition = Callable[..., Any]

# y has no derivative.
CONSTANT = frozenset(
    """
    lt le gt ge eq ne less less_equal greater greater_equal not_equal __lt__ __le__ __gt__ __ge__ __eq__ __ne__ isnan
    isinf isfinite isclose allclose equal any all logical_and logical_or logical_not logical_xor argmax argmin argsort
    nonzero count_nonzero searchsorted bucketize zero zeros_like ones_like empty_like full_like rand_like randn_like
    randint_like new_zeros new_ones new_empty new_empty_strided new_full new_tensor sign signbit floor ceil round trunc
    fix heaviside bernoulli
""".split()
)
# y is drawn at random, with no derivative.
RANDOM = frozenset("normal uniform exponential".split())
# y_i = x_p(i): elements of the first tensor.
MOVES = frozenset(
    """
    reshape reshape_as view view_as _unsafe_view _reshape_copy view_copy alias_copy flatten ravel unflatten squeeze
    squeeze_copy unsqueeze unsqueeze_copy transpose transpose_copy permute permute_copy movedim moveaxis swapaxes
    swapdims T mT t t_copy expand expand_as expand_copy broadcast_to contiguous narrow narrow_copy slice slice_copy
    select select_copy index_select index _unsafe_index gather take take_along_dim masked_select getitem split
    split_copy split_with_sizes split_with_sizes_copy chunk unbind unbind_copy tensor_split hsplit vsplit dsplit
    unsafe_split unsafe_chunk unfold unfold_copy roll flip fliplr flipud rot90 tile repeat
    repeat_interleave diagonal diagonal_copy diag diag_embed diagflat tril triu combinations im2col pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d view_as_real_copy slice_backward
    select_backward diagonal_backward
""".split()
)
# y_i = x_p(i) or z_q(i): elements of all tensors.
JOINS = frozenset(
    """
    cat concat concatenate stack hstack vstack dstack column_stack block_diag broadcast_tensors meshgrid atleast_1d
    atleast_2d atleast_3d cartesian_prod masked_scatter select_scatter slice_scatter diagonal_scatter
""".split()
)
# y_i = x_p(i), or a number that is filled in.
FILLS = frozenset("index_fill masked_fill where embedding constant_pad_nd".split())
# y_i = a x_i + b z_i: numbers of the operands at the same place.
LINEAR_BY_ELEMENT = frozenset(
    """
    add radd sub subtract rsub neg positive clone lift_fresh_copy _to_copy to type_as float double half
    bfloat16 cfloat cdouble chalf cpu cuda conj _conj_physical conj_physical resolve_conj resolve_neg real imag complex
    view_as_real view_as_complex H mH adjoint
""".split()
)
# y = A x in the first tensor.
LINEAR = frozenset(
    """
    sum mean cumsum trace sum_to_size avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d
    grid_sampler_3d col2im unfold_backward stft istft _fft_r2c _fft_c2r _fft_c2c fft_fft fft_ifft fft_rfft fft_irfft
    fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2 fft_fftn fft_ifftn fft_rfftn
    fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift
""".split()
)
# y = A x + B z in all tensors together.
LINEAR_IN_ALL = frozenset(
    """
    index_add scatter_add index_copy index_put _index_put_impl _unsafe_index_put put
""".split()
)
# y_i = a x_i or a constant, by the sign or size of x_i, which is real: linear but at kinks.
PIECEWISE_LINEAR = frozenset(
    """
    relu relu6 abs clamp clamp_min clamp_max maximum minimum fmax fmin hardtanh leaky_relu threshold frac nan_to_num
    nansum hardshrink softshrink
""".split()
)
# y = A x once the places, which x decides, are known.
CHOOSES = frozenset(
    """
    sort topk kthvalue median nanmedian mode cummax cummin amax amin max min aminmax max_pool2d max_pool3d
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d
    fractional_max_pool3d scatter scatter_reduce index_reduce segment_reduce
""".split()
)
# y = A(z) x: linear in the first tensor, or in the gradient that is pulled back.
LINEAR_IN_SOME = frozenset(
    """
    nll_loss_forward nll_loss2d_forward nll_loss_backward nll_loss2d_backward _embedding_bag
    _embedding_bag_forward_only embedding_dense_backward index_select_backward value_selecting_reduction_backward
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
    replication_pad2d_backward replication_pad3d_backward avg_pool2d_backward avg_pool3d_backward
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward max_pool2d_with_indices_backward
    max_pool3d_with_indices_backward upsample_linear1d_backward upsample_bilinear2d_backward
    upsample_trilinear3d_backward upsample_bicubic2d_backward upsample_nearest1d_backward upsample_nearest2d_backward
    upsample_nearest3d_backward
""".split()
)
# y = x z: linear in each of two tensors.
PRODUCTS = frozenset(
    """
    mul multiply rmul matmul rmatmul mm bmm mv dot inner outer ger vdot kron vecdot cross tensordot
""".split()
)
# y_i = f(x_i, z_i, ...): elementwise, besides the operators that PyTorch tags as pointwise.
ELEMENTWISE = frozenset(
    """
    polar log_sigmoid log_sigmoid_forward rrelu_with_noise rrelu_with_noise_functional
""".split()
)
# Functions that couple all elements along a dimension.
COUPLES_ALONG_DIMENSION = frozenset("cumprod logcumsumexp _softmax _log_softmax _safe_softmax".split())
# Functions of matrices [*batch, m, n], which couple all elements of each.
MATRIX_FUNCTIONS = frozenset(
    """
    _linalg_det _linalg_slogdet linalg_inv_ex _linalg_solve_ex linalg_cholesky_ex cholesky linalg_lu linalg_lu_factor_ex
    linalg_lu_solve linalg_qr _linalg_svd _linalg_eigh linalg_eig _linalg_eigvals linalg_eigvals linalg_matrix_exp
    linalg_solve_triangular triangular_solve cholesky_solve cholesky_inverse linalg_householder_product linalg_pinv
    linalg_lstsq linalg_ldl_factor_ex linalg_ldl_solve
""".split()
)

_registered: dict[str, Kind | Composition] = {}  # by the qualified name of an operator


def register_rule(op: Any, rule: Kind | Composition) -> None:
    r"""Says how an operator of one's own depends on its tensors, for the tools that follow programs through operations.

    :func:`laplacian`, :func:`forward_laplacian` and :func:`bilaplacian` differentiate an operator without a rule twice
    by itself; :func:`hessian_sparsity` takes it to couple everything that it reads, and ``hessian_diagonal`` of a batch
    pulls rows back through it. One rule serves them all; :func:`partials`, :func:`taylor` and :func:`bilaplacian`
    differentiate an elementwise operator, of which they need higher derivatives, as one without a rule. The derivatives
    remain those that were registered with the operator (``torch.library.register_autograd``); a rule that is wrong
    gives wrong results.

    ============= ============================================== ===========================================
    rule          the operator                                   second derivative
    ============= ============================================== ===========================================
    constant      has no derivative                              0
    moves         each result is an element of a tensor, or 0    0
    linear        y(x, z, ...) = A x + B z + ...                 0
    multilinear   linear in each tensor, with one result         :math:`\partial^2 y / \partial x \partial z`
    elementwise   y_i = f(x_i, z_i, ...), with one result        :math:`f''(x_i, z_i, ...)`
    ============= ============================================== ===========================================

    Args:
        op: an operator of ``torch.library.custom_op`` or of ``torch.ops``. A function in Python that is made of
            PyTorch's operations needs no rule, and a ``torch.autograd.Function`` can have none, because PyTorch does
            not show it to those who watch operations.
        rule: one of the names above, or a function with the arguments of the operator that computes the same by
            operations that have rules. Integer and bool tensors do not count. The operator is called on float64
            tensors of the CPU to find out what it moves or sums.

    Raises:
        TypeError: ``op`` is no operator.
        ValueError: ``rule`` is none of these, ``op`` is one of PyTorch's, or it has not the one result that the rule
            needs.

    Example:
        >>> @torch.library.custom_op("register_rule_example::scaled", mutates_args=())
        ... def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
        ...     return factor * x
        >>> scaled.register_autograd(
        ...     lambda ctx, grad: (scaled(grad, ctx.factor), None),
        ...     setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[1]),
        ... )
        >>> register_rule(scaled, "linear")
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> laplacian(lambda x: (scaled(x, 2.0) ** 2).sum(), x)  # in the sweep, no warning
        tensor(24.)
        >>> hessian_sparsity(lambda x: (scaled(x, 2.0) ** 2).sum(), x).to_dense().int()
        tensor([[1, 0, 0],
                [0, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """
    packet = _packet(op)
    if packet is None:
        raise TypeError(
            "torchad_ext.register_rule takes an operator of torch.library.custom_op or torch.ops, got "
            f"{type(op).__name__}; a function made of PyTorch's operations needs no rule"
        )
    name = str(packet)
    if name.startswith(("aten.", "prim.", "prims.")):
        raise ValueError(f"torchad_ext.register_rule takes operators of one's own, got {name}, which is PyTorch's")
    if not callable(rule) and rule not in get_args(Kind):
        kinds = ", ".join(map(repr, get_args(Kind)))
        raise ValueError(f"torchad_ext.register_rule takes a function or one of {kinds} for the rule, got {rule!r}")
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    other = next((overload for overload in overloads if not _has_one_result(overload)), None)
    if rule in ("multilinear", "elementwise") and other:
        raise ValueError(
            f"torchad_ext.register_rule takes the rule {rule!r} for operators with one tensor as result, got {name} "
            f"with the schema {other._schema}; give a function that composes it"
        )
    _registered[name] = rule


def rule_registered_for(func: Any) -> Kind | Composition | None:
    """The rule that a user gave an operator; None for all other functions."""
    return _registered.get(str(_packet(func))) if _registered else None


def _packet(op: Any) -> Any:
    """The operator of ``torch.ops`` with all overloads, None for what is no operator."""
    op = getattr(op, "_opoverload", op)  # of torch.library.custom_op
    op = getattr(op, "overloadpacket", op) if isinstance(op, OpOverload) else op
    return op if isinstance(op, OpOverloadPacket) else None


def _has_one_result(overload: Any) -> bool:
    return [str(result.type) for result in overload._schema.returns] == ["Tensor"]


@functools.cache
def name_in_table(packet: Any) -> str:
    """The name under which the table has an ATen operator; empty for those of others."""
    namespace, _, name = str(packet).partition(".")
    return name if namespace == "aten" else ""
