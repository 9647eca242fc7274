// Huge arguments of trigonometric functions: the reduction of Payne and Hanek (1983, "Radian reduction for
// trigonometric functions", SIGNUM 18), for doubles beyond the reach of a pi/2 of three words.
#pragma once

#include <cstdint>
#include <cstring>

namespace torchad_ext {

// x = n pi/2 + r + tail, |r| <= pi/4, n mod 4.
struct HugeReduced {
  double r, tail;
  int64_t quadrant;
};

// 64 zeros, and then the binary digits of 2 / pi.
constexpr uint64_t two_over_pi[] = {
    0,
    0xa2f9836e4e441529,
    0xfc2757d1f534ddc0,
    0xdb6295993c439041,
    0xfe5163abdebbc561,
    0xb7246e3a424dd2e0,
    0x06492eea09d1921c,
    0xfe1deb1cb129a73e,
    0xe88235f52ebb4484,
    0xe99c7026b45f7e41,
    0x3991d639835339f4,
    0x9c845f8bbdf9283b,
    0x1ff897ffde05980f,
    0xef2f118b5a0a6d1f,
    0x6d367ecf27cb09b7,
    0x4f463f669e5fea2d,
    0x7527bac7ebe5f17b,
    0x3d0739f78a5292ea,
    0x6bfb5fb11f8d5d08,
    0x56033046fc7b6bab,
    0xf0cfbc209af4361d,
};

// For finite x >= 2^30. Of x 2/pi = m 2^k 2/pi only the digits of 2/pi that m 2^k moves near the binary point count:
// those before give multiples of 4, those after less than 2^-137.
inline HugeReduced reduce_huge(double x) {
  using Wide = unsigned __int128;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof x);
  const int k = int(bits >> 52) - 1075;
  const uint64_t m = (bits & ((uint64_t(1) << 52) - 1)) | uint64_t(1) << 52;
  const int start = k - 2 + 64;  // of 192 digits
  uint64_t window[3];
  for (int i = 0; i < 3; ++i) {
    const int word = start / 64 + i, shift = start % 64;
    window[i] = two_over_pi[word] << shift | (shift ? two_over_pi[word + 1] >> (64 - shift) : 0);
  }
  const Wide low = Wide(m) * window[2];
  const Wide middle = Wide(m) * window[1] + uint64_t(low >> 64);
  const uint64_t high = m * window[0] + uint64_t(middle >> 64);
  const Wide product = Wide(high) << 64 | uint64_t(middle);  // x 2/pi mod 4, in units of 2^-126
  const Wide nearest = product + (Wide(1) << 125);
  const __int128 fraction = __int128(product << 2) >> 2;  // of the quadrant that was rounded to
  const double head = double(fraction) * 0x1p-126;
  const double rest = double(fraction - __int128(head * 0x1p126)) * 0x1p-126;
  const double half_pi = 0x1.921fb54442d18p0, half_pi_tail = 0x1.1a62633145c07p-54;
  const double r = head * half_pi;
  return {r, __builtin_fma(head, half_pi, -r) + (head * half_pi_tail + rest * half_pi), int64_t(nearest >> 126)};
}

}  // namespace torchad_ext
