// The quadratic form q = x^T A x and half of all its derivatives, s = (A + A^T) x, in one reading of A.
//
// Row i of A contributes, with y_i = sum_j A_ij x_j,
//   q   += x_i y_i
//   s_i += y_i
//   s_j += x_i A_ij    for every j
// so each element of A is read once and used twice. q and s are the same for A and A^T: a transposed A is read as it
// lies.
#pragma once

#include "strided.h"

namespace torchad_ext {

// A batch of problems of one size; `batch` gives the offsets of x (operand 0) and A (operand 1) for each of them.
template <class T>
struct QuadraticForms {
  int64_t count;  // problems
  int64_t n;      // length of x
  bool shared;    // is there one A for all?
  Strided<2> batch;
  const T* x;
  int64_t x_stride;
  const T* A;
  int64_t row_stride;  // of A, whose rows are contiguous
  T* q;                // [count]
  T* s;                // [count, n], or null when only q is wanted
};

// The pullback of (q, s) with respect to A, for cotangents g of q and h of s:
//   G = (g x + h) x^T + x h^T
template <class T>
struct OuterProducts {
  int64_t count;
  int64_t n;
  const T* x;  // [count, n]
  const T* g;  // [count], or null for 0
  const T* h;  // [count, n], or null for 0
  T* G;        // [count, n, n]
};

}  // namespace torchad_ext
