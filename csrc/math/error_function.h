// The error functions of a Vector.
#pragma once

#include "exponential.h"

namespace torchad_ext {

// A function by sixteen polynomials: f(c + t) = value + t (slope[0] + slope[1] t + ...) next to the centre c. The
// centres are such that the values are exact to some bits more than the type has. The piece of x is read off the number
// x + shift: the last bits of its exponent and the first of its mantissa.
template <class T, int terms>
struct Pieces {
  alignas(64) T centre[16];
  T value[16];
  T slope[terms][16];
  T shift;
};

template <class V, class I, class T, int terms>
inline V slope_at(const Pieces<T, terms>& pieces, I piece, V t) {
  V p = pick(pieces.slope[terms - 1], piece);
  for (int k = terms - 2; k >= 0; --k) p = fma(t, p, pick(pieces.slope[k], piece));
  return p;
}

// erf, eight pieces to an octave. The first has its centre at 0, and x itself for a value.
inline constexpr Pieces<float, 5> erf_float = {
    {0x1.7fap-1f, 0x1.ffcp-1f, 0x1.424p0f, 0x1.7f7p0f, 0x1.c11p0f, 0x1.fe8p0f, 0x1.20a8p1f, 0x1.3f38p1f, 0x1.6e6p1f,
     0x1.b23p1f, 0x1.e9e8p1f, 0, 0x1.898p-3f, 0x1.424p-2f, 0x1.c08p-2f, 0x1.21ap-1f},
    {0x1.6bded6p-1f, 0x1.af5be6p-1f, 0x1.d993dcp-1f, 0x1.ee82f8p-1f, 0x1.f94988p-1f, 0x1.fd8ad2p-1f, 0x1.ff4506p-1f,
     0x1.ffc8e4p-1f, 0x1.fff93ap-1f, 0x1.ffffcap-1f, 0x1.fffffep-1f, 0, 0x1.b69cfcp-3f, 0x1.5ff706p-2f, 0x1.db7f5cp-2f,
     0x1.270e22p-1f},
    {{0x1.498adap-1f, 0x1.a97c3cp-2f, 0x1.d9d4c8p-3f, 0x1.ea5b9cp-4f, 0x1.aa172ap-5f, 0x1.5aa036p-6f, 0x1.c96448p-8f,
      0x1.26591p-9f, 0x1.4741c2p-12f, 0x1.7da7a4p-17f, 0x1.0771d6p-21f, 0x1.06eba8p-3f, 0x1.16653ap0f, 0x1.05a0e2p0f,
      0x1.dce24ap-1f, 0x1.a3861p-1f},
     {-0x1.edd3fp-2f, -0x1.a9473p-2f, -0x1.2a3a98p-2f, -0x1.6f3bep-3f, -0x1.75b7ap-4f, -0x1.599c8p-5f, -0x1.01ddp-6f,
      -0x1.6f04p-8f, -0x1.d37p-11f, -0x1.414p-15f, -0x1.f8p-20f, 0x1.1p-22f, -0x1.abec9p-3f, -0x1.4955bp-2f,
      -0x1.a1bd2p-2f, -0x1.daa07p-2f},
     {0x1.af8ep-6f, 0x1.1b19p-3f, 0x1.56a28p-3f, 0x1.1cf6p-3f, 0x1.6e0ap-4f, 0x1.91b2p-5f, 0x1.5d8cp-6f, 0x1.18ap-7f,
      0x1.a4ep-10f, 0x1.58p-14f, 0x1.3p-18f, -0x1.812ae6p-2f, -0x1.57d5p-2f, -0x1.17c9p-2f, -0x1.87eep-3f,
      -0x1.92c4p-4f},
     {0x1.33ccp-3f, 0x1.1c8p-4f, -0x1.fd4p-8f, -0x1.689p-5f, -0x1.876p-5f, -0x1.1d3p-5f, -0x1.354p-6f, -0x1.22cp-7f,
      -0x1.128p-9f, -0x1.26p-13f, -0x1p-17f, 0x1.148p-12f, 0x1.a0fp-4f, 0x1.332p-3f, 0x1.6bcp-3f, 0x1.74cp-3f},
     {-0x1.aep-5f, -0x1.19cp-4f, -0x1.834p-5f, -0x1.ecp-7f, 0x1.a4p-8f, 0x1.aap-7f, 0x1.5cp-7f, 0x1.94p-8f,
      0x1.cc8p-10f, 0x1.72p-13f, 0x1p-16f, 0x1.c6f2p-4f, 0x1.9dp-4f, 0x1.2p-4f, 0x1.e8p-6f, -0x1.8p-7f}},
    1.375f};

inline constexpr Pieces<double, 12> erf_double = {
    {0, 0x1.858p-2, 0x1.44fp-1, 0x1.bfp-1, 0x1.1fdp0, 0x1.6278p0, 0x1.9ddp0, 0x1.e1d8p0, 0x1.20dp1, 0x1.5d84p1,
     0x1.9d9p1, 0x1.deecp1, 0x1.0eep2, 0x1.2fdep2, 0x1.4fc6p2, 0x1.6fbcp2},
    {0, 0x1.a3325ec174dap-2, 0x1.42d8ab5911126p-1, 0x1.90ebb8d554716p-1, 0x1.c6bc3e2988b0ep-1, 0x1.e64b0bb63eddfp-1,
     0x1.f49b2fe9d8121p-1, 0x1.fc055d1ee7b67p-1, 0x1.ff4623174e6e3p-1, 0x1.fff13ccb62dc1p-1, 0x1.ffff5bc547584p-1,
     0x1.fffffbed42e5ap-1, 0x1.ffffffed798b2p-1, 0x1.ffffffffd6864p-1, 0x1.ffffffffffbdep-1, 0x1.ffffffffffffcp-1},
    {{0x1.06eba8214db69p-3, 0x1.f3e886bee022ep-1, 0x1.823120fd9e795p-1, 0x1.0d969b782969bp-1, 0x1.46732be42b308p-2,
      0x1.53bbf25f9edc7p-3, 0x1.52df239feb9a2p-4, 0x1.0b788ad551d47p-5, 0x1.c6e121e7808cp-8, 0x1.55e0a2d243b2cp-11,
      0x1.1504b8174dcd6p-15, 0x1.f809a1bacb365p-21, 0x1.41f2cdcf3d999p-26, 0x1.923b266dc9178p-33, 0x1.6103515d6d104p-40,
      0x1.753ede5270452p-48},
     {-0x1.11p-48, -0x1.7c4d2481b5022p-2, -0x1.ea303bcfea562p-2, -0x1.d6b9f976d04f8p-2, -0x1.6f045bc875ce8p-2,
      -0x1.d6692541d67f4p-3, -0x1.11e2a8e2f8838p-3, -0x1.f76f2a8ff2bdp-5, -0x1.00976e87fe8bp-6, -0x1.d2c385cca44p-10,
      -0x1.bf846fa5068p-14, -0x1.d779526dcp-19, -0x1.54a7c988p-24, -0x1.dd70d2p-31, -0x1.cf04p-38, -0x1.0cp-45},
     {-0x1.812746b03634fp-2, -0x1.d9ab93fab857p-3, -0x1.90846d800fep-5, 0x1.790204dd845p-4, 0x1.4c88ab52f734p-3,
      0x1.40fd491476cp-3, 0x1.dd57379f35ep-4, 0x1.0f46ca733d2p-4, 0x1.5c110705be88p-6, 0x1.8c5b6e94bdcp-9,
      0x1.cae287ba97p-13, 0x1.1b823089ap-17, 0x1.d32f4408p-23, 0x1.716ddp-29, 0x1.8d83p-36, 0x1.fap-44},
     {-0x1.8722p-37, 0x1.579e94b5df6p-3, 0x1.6690c3f668p-3, 0x1.cf1000540d2p-4, 0x1.cdfef7b8468p-6, -0x1.05b28f3954p-5,
      -0x1.966b5515158p-5, -0x1.56c92d42b18p-5, -0x1.33262639498p-6, -0x1.cf59c3e99bp-9, -0x1.4d5dc0ec38p-12,
      -0x1.eb18567d8p-17, -0x1.d1f1517p-22, -0x1.a29cap-28, -0x1.f62p-35, -0x1.62p-42},
     {0x1.ce2f21aabf97p-4, 0x1.6747951484p-5, -0x1.e7e2bddb84p-6, -0x1.12cffe6048p-4, -0x1.f6ec0bc42ep-5,
      -0x1.e07d0464b4p-6, -0x1.79efb2f5cp-9, 0x1.7d3e73608p-7, 0x1.59968bd068p-7, 0x1.832e66f959p-9, 0x1.6a01096ed8p-12,
      0x1.44f7be31p-16, 0x1.675fcfep-21, 0x1.71ccc8p-27, 0x1.f10ap-34, 0x1.7cp-41},
     {0x1.2c05ap-31, -0x1.9c14a3146p-5, -0x1.4add40c0bp-5, -0x1.5c11a251p-7, 0x1.fb7e7d2c4p-7, 0x1.695722172p-6,
      0x1.e46c73d44p-7, 0x1.f9c833fep-9, -0x1.807018b99p-9, -0x1.c9b3bca198p-10, -0x1.2cf9b8e94p-12, -0x1.53d163a4p-16,
      -0x1.bce1facp-21, -0x1.08b94p-26, -0x1.9098p-33, -0x1.38p-40},
     {-0x1.b82d16ff5a8p-6, -0x1.46124188p-8, 0x1.d84dfa38p-7, 0x1.31233e84p-6, 0x1.3bf4dd5cp-7, -0x1.c8c7acfp-10,
      -0x1.9276d55p-8, -0x1.3d8ae01p-8, -0x1.452ed665p-11, 0x1.596d20c2cp-11, 0x1.7f4bcb19p-13, 0x1.1de6243p-16,
      0x1.c46b27p-21, 0x1.3b1ap-26, 0x1.0fp-32, 0x1.48p-39},
     {0x1.903ddbp-21, 0x1.70b70a3p-7, 0x1.a152c19p-8, -0x1.d4e8b3p-10, -0x1.8b1b74p-8, -0x1.0e30c9cp-8, -0x1.67c022p-11,
      0x1.7cea4b8p-10, 0x1.0079c514p-10, -0x1.3d24bce8p-14, -0x1.693bc578p-14, -0x1.8538e58p-17, -0x1.7f5a3p-21,
      -0x1.3d45p-26, -0x1.404p-32, -0x1.ap-38},
     {0x1.55f4a9f02p-8, 0x1.14c5p-16, -0x1.e50942p-9, -0x1.ad2d26p-9, -0x1.829cep-12, 0x1.a55af4p-10, 0x1.79a4bcp-10,
      0x1.5ea52p-12, -0x1.83eab7dp-12, -0x1.5904a88p-14, 0x1.b94d938p-16, 0x1.a8f1e2p-18, 0x1.107c4p-21, 0x1.1104p-26,
      0x1.37p-32, -0x1p-37},
     {0x1.013a528p-15, -0x1.063dfp-9, -0x1.5b324p-11, 0x1.d28a4p-11, 0x1.2eaecp-10, 0x1.2deap-12, -0x1.6871p-12,
      -0x1.92d2p-12, -0x1.d9a3p-18, 0x1.e8abec8p-15, -0x1.be012p-20, -0x1.67168p-19, -0x1.45ca8p-22, -0x1.968p-27,
      -0x1.5p-33, 0x1.6p-35},
     {-0x1.f0ef89a8p-11, 0x1.1248p-13, 0x1.61e7p-11, 0x1.9d98p-12, -0x1.6acp-13, -0x1.5d88p-12, -0x1.1b2p-13,
      0x1.3c8p-14, 0x1.08f4a8p-14, -0x1.f755e8p-17, -0x1.c99ecp-19, 0x1.9e27p-21, 0x1.48ecp-23, 0x1.13p-27, 0x1.dp-33,
      0x1.4p-34},
     {0x1.4e0e61p-13, 0x1.1dap-12, 0x1.9cp-16, -0x1.98p-13, -0x1.27p-13, 0x1.01p-15, 0x1.72p-14, 0x1.17p-15,
      -0x1.70738p-16, -0x1.5b9ap-20, 0x1.0057p-19, -0x1.56cp-24, -0x1.e7cp-25, -0x1.2cp-28, -0x1.6p-31, -0x1.8p-33}},
    2};

// 2 / sqrt(pi) times the integral of exp(-t^2) over t from 0 to x.
// Error: 0.9 ulp.
// Range: all numbers.
// Source: sixteen minimax polynomials.
inline Float erf(Float x) {
  const Float z = abs(x) > 4.0f ? broadcast(4.0f) : abs(x);  // erf is 1 from 3.92
  const Float shifted = z + erf_float.shift;
  const Int32 piece = (Int32)shifted >> 20;
  const Float value = shifted < 1.5f ? z : pick(erf_float.value, piece);
  const Float t = z - pick(erf_float.centre, piece);
  return flip(fma(t, slope_at(erf_float, piece, t), value), (Int32)x);
}
inline Double erf(Double x) {
  const Double z = abs(x) > 5.97 ? broadcast(5.97) : abs(x);  // erf is 1 from 5.93
  const Double shifted = z + erf_double.shift;
  const auto piece = (Int64)((UInt64)shifted >> 49);
  const Double value = shifted < 2.25 ? z : pick(erf_double.value, piece);
  const Double t = z - pick(erf_double.centre, piece);
  return flip(fma(t, slope_at(erf_double, piece, t), value), (Int64)x);
}

// exp(x^2) erfc(x), four pieces to an octave.
inline constexpr Pieces<float, 6> erfcx_float = {
    {0x1.84ap0f, 0x1.ff6p0f, 0x1.3ecp1f, 0x1.8198p1f, 0x1.db7p1f, 0x1.3004p2f, 0x1.719p2f, 0x1.b0b8p2f, 0x1.08fap3f,
     0x1.35e2p3f, 0x1.0dp-4f, 0x1.818p-3f, 0x1.77cp-2f, 0x1.444p-1f, 0x1.c1p-1f, 0x1.218p0f},
    {0x1.464d3cp-2f, 0x1.05cadcp-2f, 0x1.b13928p-3f, 0x1.6d368p-3f, 0x1.2cda34p-3f, 0x1.dc5a36p-4f, 0x1.8a7354p-4f,
     0x1.522b04p-4f, 0x1.15164ep-4f, 0x1.dac4c4p-5f, 0x1.dc297ap-1f, 0x1.a31cf2p-1f, 0x1.61b4f2p-1f, 0x1.1b42ep-1f,
     0x1.dad2fap-2f, 0x1.93c55ep-2f},
    {{-0x1.4987aep-3f, -0x1.b64688p-4f, -0x1.3287fcp-4f, -0x1.ba31b2p-5f, -0x1.2fe6c6p-5f, -0x1.810b12p-6f,
      -0x1.0999a4p-6f, -0x1.87d118p-7f, -0x1.07ee6ap-7f, -0x1.8423ep-8f, -0x1.0197fcp0f, -0x1.a3f2e4p-1f,
      -0x1.3e264p-1f, -0x1.b5e6ecp-2f, -0x1.42a9ccp-2f, -0x1.e47ce2p-3f},
     {0x1.30b5dap-4f, 0x1.576098p-5f, 0x1.9c72b4p-6f, 0x1.0186d8p-6f, 0x1.2a7228p-7f, 0x1.3170ecp-8f, 0x1.60ef44p-9f,
      0x1.c1722p-10f, 0x1.f35b2ap-11f, 0x1.3bb3fp-11f, 0x1.ba53ep-1f, 0x1.5410bp-1f, 0x1.d9ed94p-2f, 0x1.2132e4p-2f,
      0x1.7fba28p-3f, 0x1.03a78p-3f},
     {-0x1.05f7bp-5f, -0x1.fc57p-7f, -0x1.095fp-7f, -0x1.219bp-8f, -0x1.1d7acp-9f, -0x1.dbfc2p-11f, -0x1.cef78p-12f,
      -0x1.fe8cp-13f, -0x1.d5254p-14f, -0x1.fef8p-15f, -0x1.4415p-1f, -0x1.da98p-2f, -0x1.3440cp-2f, -0x1.53aa4p-3f,
      -0x1.9bbf8p-4f, -0x1.fcee8p-5f},
     {0x1.a741p-7f, 0x1.660ep-8f, 0x1.482p-9f, 0x1.3b4cp-10f, 0x1.0ab5p-11f, 0x1.6ca8p-13f, 0x1.2be4p-14f,
      0x1.1f38p-15f, 0x1.b5cbp-17f, 0x1.9b8p-18f, 0x1.a53p-2f, 0x1.274p-2f, 0x1.68ccp-3f, 0x1.6b4p-4f, 0x1.9658p-5f,
      0x1.cf28p-6f},
     {-0x1.48b8p-8f, -0x1.e7ap-10f, -0x1.8a6p-11f, -0x1.4ecp-12f, -0x1.f048p-14f, -0x1.16fp-15f, -0x1.85p-17f,
      -0x1.424p-18f, -0x1.9f8p-20f, -0x1.5p-21f, -0x1.fap-3f, -0x1.4cp-3f, -0x1.86cp-4f, -0x1.698p-5f, -0x1.78p-6f,
      -0x1.8f8p-7f},
     {0x1.ee8p-10f, 0x1.38p-11f, 0x1.cp-13f, 0x1.68p-14f, 0x1.a6p-16f, 0x1.9dp-18f, 0x1.f2p-20f, 0x1.68p-21f,
      0x1.864p-23f, 0x1p-24f, 0x1.8p-4f, 0x1.cp-4f, 0x1.88p-5f, 0x1.54p-6f, 0x1.48p-7f, 0x1.3p-8f}},
    0.75f};

inline constexpr Pieces<double, 14> erfcx_double = {
    {0x1.efp-3, 0x1.79ep-1, 0x1.4p0, 0x1.c3dp0, 0x1.3b94p1, 0x1.c038p1, 0x1.211p2, 0x1.5dep2, 0x1.c3dp2, 0x1.216fp3,
     0x1.6103p3, 0x1.9e64p3, 0x1.00098p4, 0x1.40c5p4, 0x1.8019p4, 0x1.aa98p4},
    {0x1.8d98c7a63f0e3p-1, 0x1.05d2aca9b13f6p-1, 0x1.78a692138767ap-2, 0x1.21d3a71ef4b59p-2, 0x1.b50d9ac3d590fp-3,
     0x1.3de5972b453f4p-3, 0x1.f3ef4cc9a53c2p-4, 0x1.9ff9b1fee7995p-4, 0x1.4427e6209cbeep-4, 0x1.fbed402c27b9bp-5,
     0x1.a1433c0a2e506p-5, 0x1.63da2b408c187p-5, 0x1.204334f2e0087p-5, 0x1.cc80fd4c80924p-6, 0x1.80b8e798a33f5p-6,
     0x1.5a74388f0b5c6p-6},
    {{-0x1.81884f85b6729p-1, -0x1.7e8522d6b1d87p-2, -0x1.abaacdbfa8b07p-3, -0x1.08de3a9404abdp-3, -0x1.37b405df1366bp-4,
      -0x1.523974388c7cdp-5, -0x1.a750ac7c694ddp-6, -0x1.26f0fc8254df4p-6, -0x1.684fcc793280cp-7, -0x1.bbec5bd3b7e48p-8,
      -0x1.2c283a4ab9217p-8, -0x1.b516dd0ba7639p-9, -0x1.1f1b25a55621ap-9, -0x1.6e9c4b8dafc36p-10,
      -0x1.fff253029ae41p-11, -0x1.9f3ba2d65cae8p-11},
     {0x1.3069f56dcd94dp-1, 0x1.e2a9edda1d3a1p-3, 0x1.b56f45eef7e59p-4, 0x1.c0c261ee33b2ap-5, 0x1.a6771bb79dcaep-6,
      0x1.5ce53311422b5p-7, 0x1.5f2c5066a94b8p-8, 0x1.9c22dc88fb566p-9, 0x1.8ccec63261894p-10, 0x1.81bc419514ff8p-11,
      0x1.ae1f983b148a4p-12, 0x1.0ba80679bc214p-12, 0x1.1d67cba44425dp-13, 0x1.23809540d5cfp-14, 0x1.54540342e75e4p-15,
      0x1.f15179626ec6p-16},
     {-0x1.9ff0ef1a65afap-2, -0x1.108b5276d11f4p-3, -0x1.9b635ac624888p-5, -0x1.649d2277cfc9p-6, -0x1.11a8aa132e0acp-7,
      -0x1.5dc7efa931e6p-9, -0x1.1dbcca253d71p-10, -0x1.1be8d3df77e6p-11, -0x1.b1137b3784c1p-13, -0x1.4d4386ff420cp-14,
      -0x1.32f98cddb55p-15, -0x1.46dc5015dd4ap-16, -0x1.1b2c6f57970ep-17, -0x1.cefeb7b77a73p-19, -0x1.c417e29312ecp-20,
      -0x1.299b89e70bcp-20},
     {0x1.fc4b8f111c11p-3, 0x1.19841aad8c86p-4, 0x1.68a25a66419p-6, 0x1.0c2230775378p-7, 0x1.547973beda22p-9,
      0x1.557ffbf7fe1cp-11, 0x1.c885465fc84p-13, 0x1.81e07f7f152p-14, 0x1.d485a7dd31ccp-16, 0x1.1e50bcec572p-17,
      0x1.b479042dc64p-19, 0x1.8e055834d84p-20, 0x1.186d1345796p-21, 0x1.6f3d6c7901bp-23, 0x1.2c062a092bep-24,
      0x1.63f18e0fdp-25},
     {-0x1.1b9c71339fa8p-3, -0x1.0ddaf7976e8p-5, -0x1.299636d703cp-7, -0x1.8000493deb8p-9, -0x1.98568e73d0fp-11,
      -0x1.4543d46b15p-13, -0x1.665d634cdd8p-15, -0x1.02d2effa76p-16, -0x1.f68a8e3348p-19, -0x1.e93f57b4d84p-21,
      -0x1.351c8e1f6fp-22, -0x1.e34d165d6ep-24, -0x1.152e68c4056p-25, -0x1.22ef24b395p-27, -0x1.8ddf22918ap-29,
      -0x1.a96b305p-30},
     {0x1.252a14cbf04p-4, 0x1.e5288da9678p-7, 0x1.d1b695abf2p-9, 0x1.0735806394p-10, 0x1.d98b8af5f08p-13,
      0x1.2eb04e536p-15, 0x1.14a7bd009p-17, 0x1.56da3d881p-19, 0x1.0b44ce47f48p-21, 0x1.9fbc729332p-24,
      0x1.b42b7a6088p-26, 0x1.249a58737p-27, 0x1.1175c3403ap-29, 0x1.cc686149e4p-32, 0x1.0797242e6p-33, 0x1.fc1a11p-35},
     {-0x1.1ba30cada6p-5, -0x1.9c34248d7cp-8, -0x1.5b8bc8e9bp-10, -0x1.5ad1a976cp-12, -0x1.0a33039322p-14,
      -0x1.13945d915p-17, -0x1.a462280c2p-20, -0x1.c0a7d329p-22, -0x1.19f887e4f4p-24, -0x1.5f61b0aaep-27,
      -0x1.32932554p-29, -0x1.614fdc82p-31, -0x1.0d4908e248p-33, -0x1.6bdc6a134p-36, -0x1.5cf6056b8p-38,
      -0x1.2f2e9p-39},
     {0x1.02e311ebdp-6, 0x1.4d0c30922p-9, 0x1.f0fe6decp-12, 0x1.b8bce5b8p-14, 0x1.22c9cfb5dp-16, 0x1.eb82bcb28p-20,
      0x1.3a8990acp-22, 0x1.221c73ecp-24, 0x1.271d2593ap-27, 0x1.276ce294p-30, 0x1.ad5f9a9p-33, 0x1.a9701f4p-35,
      0x1.08aeaa12cp-37, 0x1.1f36bbd8p-40, 0x1.cd96e908p-43, 0x1.6a2ap-44},
     {-0x1.c09fd6b18p-8, -0x1.01289a76p-10, -0x1.55c0cf18p-13, -0x1.0edc0cap-15, -0x1.35390fd0cp-18, -0x1.adc9d71p-22,
      -0x1.cfd03edp-25, -0x1.72ec25cp-27, -0x1.3278863fp-30, -0x1.ee2f7c7p-34, -0x1.2b9376cp-36, -0x1.fee7978p-39,
      -0x1.03ae769ap-41, -0x1.c4e2557p-45, -0x1.310602p-47, -0x1.1a8p-48},
     {0x1.72d78ac8p-9, 0x1.7d0a2e6p-12, 0x1.c571918p-15, 0x1.42b467p-17, 0x1.40996768p-20, 0x1.70d934ap-24,
      0x1.5127fdp-27, 0x1.d504dp-30, 0x1.3bdf23a8p-33, 0x1.9b3c8a4p-37, 0x1.a089d6p-40, 0x1.320b9p-42, 0x1.fc9b429p-46,
      0x1.64a0368p-49, 0x1.92c7ecp-52, -0x1.acp-52},
     {-0x1.2592cb8p-10, -0x1.0fb6e5p-13, -0x1.22d838p-16, -0x1.747bap-19, -0x1.445db07p-22, -0x1.36bd7bp-26,
      -0x1.e343p-30, -0x1.25452p-32, -0x1.42a5f46p-36, -0x1.544ba8p-40, -0x1.20a3ep-43, -0x1.6b658p-46, -0x1.f089a2p-50,
      -0x1.1844ap-53, -0x1.09f78p-56, 0x1.ep-50},
     {0x1.bf898cp-12, 0x1.76917p-15, 0x1.6993p-18, 0x1.b0eap-21, 0x1.42cc14p-24, 0x1.0187ep-28, 0x1.5667p-32,
      0x1.6addp-35, 0x1.45b71bp-39, 0x1.178c8p-43, 0x1.8c39p-47, 0x1.9828p-50, 0x1.e48d7p-54, 0x1.b8a24p-58,
      0x1.5f62p-61, 0x1.18p-50},
     {-0x1.51576p-13, -0x1.fee9p-17, -0x1.c518p-20, -0x1.195p-22, -0x1.4577ep-26, -0x1.b4cb8p-31, -0x1.f044p-35,
      -0x1.c8ap-38, -0x1.5d0bd8p-42, -0x1.dc04p-47, -0x1.1158p-50, -0x1.55p-53, -0x1.f3228p-58, -0x1.696p-62,
      -0x1.c24p-66, -0x1.54p-50},
     {0x1.c895p-15, 0x1.3cccp-18, 0x1.178p-21, -0x1.0ap-24, 0x1.1244ep-28, 0x1.5e7p-33, 0x1.46cp-37, 0x1.1bp-40,
      0x1.84864p-45, 0x1.a4f8p-50, 0x1.d3p-54, 0x1.5e8p-55, 0x1.e41cp-62, 0x1.15ap-66, 0x1.0ep-70, -0x1.bp-51}},
    2};

// exp(-weight x^2) = 2^power (1 + p) for a weight of 1 or 1/2, with the rounding error of the square carried into the
// exponent. Error of the polynomials: 2^-28 and 2^-58.
template <class V>
struct SplitGaussian {
  V p;
  decltype(V{} < V{}) power;
};
inline SplitGaussian<Float> split_gaussian(Float x, float weight) {
  const Float weighted = weight * x;
  const Float square = weighted * x;
  const Float rounded = fma(square, broadcast(-0x1.715476p0f), broadcast(round_float));
  const Float n = rounded - round_float;
  const Float head = fma(n, broadcast(-0x1.62e43p-1f), -square);
  const Float tail = fma(n, broadcast(0x1.05c61p-29f), fma(weighted, -x, square));
  const Float r = head + tail;
  const Float p = horner(r, 0.5f, 0x1.55548ap-3f, 0x1.5554e4p-5f, 0x1.123e34p-7f, 0x1.6d5152p-10f);
  return {head + fma(r * r, p, tail), rounded_integer((Int32)rounded)};
}
inline SplitGaussian<Double> split_gaussian(Double x, double weight) {
  const Double weighted = weight * x;
  const Double square = weighted * x;
  const Double rounded = fma(square, broadcast(-0x1.71547652b82fep0), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double head = fma(n, broadcast(-0x1.62e42fefa39efp-1), -square);
  const Double tail = fma(n, broadcast(-0x1.abc9e3b39803fp-56), fma(weighted, -x, square));
  const Double r = head + tail;
  const Double p = horner(r, 0x1.000000000000cp-1, 0x1.555555555555cp-3, 0x1.555555554fdffp-5, 0x1.111111110e9ebp-7,
                          0x1.6c16c186096dep-10, 0x1.a01a01b44d8f5p-13, 0x1.a01995b2d6f52p-16, 0x1.71ddee594d11cp-19,
                          0x1.28b0ff01ccbf9p-22, 0x1.af6eafadd0505p-26);
  return {head + fma(r * r, p, tail), rounded_integer((Int64)rounded)};
}

// Beyond `normal` e^(-x^2) and erfc are denormal, beyond `zero` they are 0.
struct GaussianRange {
  double normal, zero;
};
template <class T>
constexpr GaussianRange gaussian_range = {9.19, 10.3};
template <>
inline constexpr GaussianRange gaussian_range<Double> = {26.54, 27.4};
// The same for e^(-x^2 / 2) / sqrt(2 pi) and its integral.
template <class T>
constexpr GaussianRange normal_range = {12.9, 14.6};
template <>
inline constexpr GaussianRange normal_range<Double> = {37.5, 38.8};

// of(z, p) 2^power with z = |x| and exp(-weight z^2) = 2^power (1 + p).
template <class V, class F>
V by_gaussian(V x, float weight, const GaussianRange& range, F of) {
  V z = abs(x);
  const bool normal = __builtin_expect(all_within(z, range.normal), 1);
  if (!normal) z = at_most(range.zero, z);
  const auto [p, power] = split_gaussian(z, weight);
  const V y = of(z, p);
  return normal ? raise(y, power) : scale(y, power);
}

// exp(-x^2).
// Error: 0.9 ulp.
// Range: all numbers, denormal results included.
// Source: split_gaussian.
template <class V>
V exp_minus_square(V x) {
  return by_gaussian(x, 1, gaussian_range<V>, [](V, V p) { return number<V>(1) + p; });
}

// The density of the normal distribution, exp(-x^2 / 2) / sqrt(2 pi).
// Error: 1.5 ulp.
// Range: all numbers.
// Source: split_gaussian.
template <class V>
V normal_density(V x) {
  const V peak = number<V>(0x1.9884533d43651p-2);
  return by_gaussian(x, 0.5f, normal_range<V>, [peak](V, V p) { return fma(peak, p, peak); });
}

// exp(z^2) erfc(z) (1 + p) for z >= 0.
template <class V, class I, class T, int terms>
inline V scaled_erfc(const Pieces<T, terms>& pieces, I piece, V z, V p) {
  const V t = z - pick(pieces.centre, piece);
  const V value = pick(pieces.value, piece);
  const V change = t * slope_at(pieces, piece, t);
  return value + fma(value + change, p, change);
}
inline Float scaled_erfc(Float z, Float p) {
  return scaled_erfc(erfcx_float, (Int32)(z + erfcx_float.shift) >> 21, z, p);
}
inline Double scaled_erfc(Double z, Double p) {
  return scaled_erfc(erfcx_double, (Int64)((UInt64)(z + erfcx_double.shift) >> 50), z, p);
}

// 1 - erf(x).
// Error: 1.6 ulp.
// Range: all numbers, denormal results included.
// Source: exp(-x^2) times erfcx(x), of sixteen minimax polynomials; 2 - erfc(-x) below 0.
template <class V>
V erfc(V x) {
  const V y = by_gaussian(x, 1, gaussian_range<V>, [](V z, V p) { return scaled_erfc(z, p); });
  return x < V{} ? number<V>(2) - y : y;
}

// The normal distribution function.
// Error: 2.2 ulp.
// Range: all numbers.
// Source: erfc(-x / sqrt(2)) / 2.
template <class V>
V ndtr(V x) {
  const V half = number<V>(0.5);
  const V y = by_gaussian(x, 0.5f, normal_range<V>,
                          [half](V z, V p) { return half * scaled_erfc(number<V>(0x1.6a09e667f3bcdp-1) * z, p); });
  return x > V{} ? number<V>(1) - y : y;
}

}  // namespace torchad_ext
