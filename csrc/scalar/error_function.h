// The error functions of a Vector.
#pragma once

#include "exponential.h"

namespace torchad_ext {

using UInt64 = Vector<uint64_t>;

// A function by sixteen polynomials: f(c + t) = value + t (slope[0] + slope[1] t + ...) next to the centre c. The
// centres are such that the values are exact to ten bits more than the type has.
template <class T, int terms>
struct Pieces {
  T centre[16];
  T value[16];
  T slope[terms][16];
};

// Lane by lane the entry of a row at `piece` mod 16; a permutation of one or two registers where there is one.
inline Float pick(const float (&row)[16], Int32 piece) {
#if defined(__AVX512F__)
  return (Float)_mm512_permutexvar_ps((__m512i)piece, _mm512_load_ps(row));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(row), (__m256i)piece);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(row + 8), (__m256i)piece);
  return (Float)_mm256_blendv_ps(low, high, (__m256)(piece << 28));
#else
  Float picked;
  for (int i = 0; i < lanes<float>; ++i) picked[i] = row[piece[i] & 15];
  return picked;
#endif
}
inline Double pick(const double (&row)[16], Int64 piece) {
#if defined(__AVX512F__)
  return (Double)_mm512_permutex2var_pd(_mm512_load_pd(row), (__m512i)piece, _mm512_load_pd(row + 8));
#else
  Double picked;
  for (int i = 0; i < lanes<double>; ++i) picked[i] = row[piece[i] & 15];
  return picked;
#endif
}

template <class V, class I, class T, int terms>
inline V slope(const Pieces<T, terms>& pieces, I piece, V t) {
  V p = pick(pieces.slope[terms - 1], piece);
  for (int k = terms - 2; k >= 0; --k) p = fma(t, p, pick(pieces.slope[k], piece));
  return p;
}

// The piece of x is read off the floating-point number x + shift: the last bits of the exponent, the first of the
// mantissa. There are eight pieces to an octave of it for erf, and four for exp(x^2) erfc(x).
constexpr float erf_shift_float = 1.375f;
constexpr double erf_shift_double = 2;
constexpr float erfc_shift_float = 0.75f;
constexpr double erfc_shift_double = 2;

alignas(64) inline constexpr Pieces<float, 5> erf_float = {
    {0x1.7fap-1f, 0x1.ffcp-1f, 0x1.424p0f, 0x1.7f7p0f, 0x1.c11p0f, 0x1.fe8p0f, 0x1.20a8p1f, 0x1.3f38p1f, 0x1.6e6p1f,
     0x1.b23p1f, 0x1.e9e8p1f, 0, 0x1.898p-3f, 0x1.424p-2f, 0x1.c08p-2f, 0x1.21ap-1f},
    {0x1.6bded6p-1f, 0x1.af5be6p-1f, 0x1.d993dcp-1f, 0x1.ee82f8p-1f, 0x1.f94988p-1f, 0x1.fd8ad2p-1f, 0x1.ff4506p-1f,
     0x1.ffc8e4p-1f, 0x1.fff93ap-1f, 0x1.ffffcap-1f, 0x1.fffffep-1f, 0, 0x1.b69cfcp-3f, 0x1.5ff706p-2f, 0x1.db7f5cp-2f,
     0x1.270e22p-1f},
    {{0x1.498adap-1f, 0x1.a97c3cp-2f, 0x1.d9d4c8p-3f, 0x1.ea5b9cp-4f, 0x1.aa172ap-5f, 0x1.5aa036p-6f, 0x1.c96448p-8f,
      0x1.26591p-9f, 0x1.4741c2p-12f, 0x1.7da7a4p-17f, 0x1.0771d6p-21f, 0x1.06eba8p-3f, 0x1.16653ap0f, 0x1.05a0e2p0f,
      0x1.dce24ap-1f, 0x1.a3861p-1f},
     {-0x1.edd3fp-2f, -0x1.a9472cp-2f, -0x1.2a3a9cp-2f, -0x1.6f3bdep-3f, -0x1.75b7ap-4f, -0x1.599c6p-5f,
      -0x1.01dd32p-6f, -0x1.6f04c6p-8f, -0x1.d36f42p-11f, -0x1.415db2p-15f, -0x1.f62856p-20f, 0x1.11f276p-22f,
      -0x1.abec94p-3f, -0x1.4955b6p-2f, -0x1.a1bd22p-2f, -0x1.daa076p-2f},
     {0x1.af8ecap-6f, 0x1.1b18e4p-3f, 0x1.56a246p-3f, 0x1.1cf5d4p-3f, 0x1.6e0a1p-4f, 0x1.91b26ep-5f, 0x1.5d8b74p-6f,
      0x1.18a4f8p-7f, 0x1.a4dd68p-10f, 0x1.57b10ap-14f, 0x1.3279b2p-18f, -0x1.812aecp-2f, -0x1.57d4dep-2f,
      -0x1.17c946p-2f, -0x1.87ee4ap-3f, -0x1.92c314p-4f},
     {0x1.33cc1ap-3f, 0x1.1c7916p-4f, -0x1.fcf7ecp-8f, -0x1.688bb4p-5f, -0x1.8758e6p-5f, -0x1.1d34b6p-5f,
      -0x1.3539ap-6f, -0x1.22aaf6p-7f, -0x1.12813ep-9f, -0x1.25b75ep-13f, -0x1.272708p-17f, 0x1.15e3b2p-12f,
      0x1.a0fdacp-4f, 0x1.3329d6p-3f, 0x1.6bbf2p-3f, 0x1.74d8ecp-3f},
     {-0x1.ae139p-5f, -0x1.19d01ap-4f, -0x1.82f062p-5f, -0x1.ebc0f4p-7f, 0x1.a538cep-8f, 0x1.a9c5acp-7f, 0x1.5d1c94p-7f,
      0x1.90e42p-8f, 0x1.cc9876p-10f, 0x1.73df72p-13f, 0x1.bba2d8p-17f, 0x1.c6ec3ap-4f, 0x1.9cb0bep-4f, 0x1.219fa8p-4f,
      0x1.e7a99p-6f, -0x1.84264ap-7f}}};

alignas(64) inline constexpr Pieces<double, 12> erf_double = {
    {0, 0x1.858p-2, 0x1.44fp-1, 0x1.bfp-1, 0x1.1fdp0, 0x1.6278p0, 0x1.9ddp0, 0x1.e1d8p0, 0x1.20dp1, 0x1.5d84p1,
     0x1.9d9p1, 0x1.deecp1, 0x1.0eep2, 0x1.2fdep2, 0x1.4fc6p2, 0x1.6fbcp2},
    {0, 0x1.a3325ec174dap-2, 0x1.42d8ab5911126p-1, 0x1.90ebb8d554716p-1, 0x1.c6bc3e2988b0ep-1, 0x1.e64b0bb63eddfp-1,
     0x1.f49b2fe9d8121p-1, 0x1.fc055d1ee7b67p-1, 0x1.ff4623174e6e3p-1, 0x1.fff13ccb62dc1p-1, 0x1.ffff5bc547584p-1,
     0x1.fffffbed42e5ap-1, 0x1.ffffffed798b2p-1, 0x1.ffffffffd6864p-1, 0x1.ffffffffffbdep-1, 0x1.ffffffffffffcp-1},
    {{0x1.06eba8214db69p-3, 0x1.f3e886bee022ep-1, 0x1.823120fd9e795p-1, 0x1.0d969b782969bp-1, 0x1.46732be42b308p-2,
      0x1.53bbf25f9edc7p-3, 0x1.52df239feb9a2p-4, 0x1.0b788ad551d47p-5, 0x1.c6e121e7808cp-8, 0x1.55e0a2d243b2cp-11,
      0x1.1504b8174dcd6p-15, 0x1.f809a1bacb365p-21, 0x1.41f2cdcf3d999p-26, 0x1.923b266dc9178p-33, 0x1.6103515d6d104p-40,
      0x1.753ede5270452p-48},
     {-0x1.110090ce5e7b8p-48, -0x1.7c4d2481b5023p-2, -0x1.ea303bcfea561p-2, -0x1.d6b9f976d04f9p-2,
      -0x1.6f045bc875ce8p-2, -0x1.d6692541d67f3p-3, -0x1.11e2a8e2f8839p-3, -0x1.f76f2a8ff2bd4p-5, -0x1.00976e87fe8b6p-6,
      -0x1.d2c385cca43ep-10, -0x1.bf846fa506777p-14, -0x1.d779526db2e29p-19, -0x1.54a7c98893045p-24,
      -0x1.dd70d1db15d3fp-31, -0x1.cf0460855bc2ap-38, -0x1.0c139cd7f9be8p-45},
     {-0x1.812746b03634fp-2, -0x1.d9ab93fab8567p-3, -0x1.90846d800fe49p-5, 0x1.790204dd844f5p-4, 0x1.4c88ab52f7326p-3,
      0x1.40fd491476bfp-3, 0x1.dd57379f35e14p-4, 0x1.0f46ca733d245p-4, 0x1.5c110705be899p-6, 0x1.8c5b6e94bdc7ep-9,
      0x1.cae287ba96ecp-13, 0x1.1b823089afe7cp-17, 0x1.d32f4408ee265p-23, 0x1.716dd0e7035b4p-29, 0x1.8d833057f84cap-36,
      0x1.f9aabe0b2066p-44},
     {-0x1.8720c4dfcff92p-37, 0x1.579e94b5dfafbp-3, 0x1.6690c3f667b07p-3, 0x1.cf1000540ddd7p-4, 0x1.cdfef7b846817p-6,
      -0x1.05b28f39548c5p-5, -0x1.966b551514f2ap-5, -0x1.56c92d42b08e5p-5, -0x1.3326263949398p-6, -0x1.cf59c3e99b965p-9,
      -0x1.4d5dc0ec3a55p-12, -0x1.eb18567ff72c9p-17, -0x1.d1f1515a0f45dp-22, -0x1.a29ca1f5c2cb6p-28,
      -0x1.f61739082a0ddp-35, -0x1.60042c72e3ebfp-42},
     {0x1.ce2f21aabf7abp-4, 0x1.674795148052fp-5, -0x1.e7e2bddb7116cp-6, -0x1.12cffe6045c3dp-4, -0x1.f6ec0bc422409p-5,
      -0x1.e07d0464a428p-6, -0x1.79efb2f5ffe78p-9, 0x1.7d3e73603a973p-7, 0x1.59968bd06656p-7, 0x1.832e66f954f8p-9,
      0x1.6a01096ed9391p-12, 0x1.44f7be2d2d947p-16, 0x1.675fcfc8a92d3p-21, 0x1.71ccb160e1c87p-27, 0x1.f105cb4624963p-34,
      0x1.818f101cddd0fp-41},
     {0x1.2c185ca7548f9p-31, -0x1.9c14a3157e077p-5, -0x1.4add40bf8952dp-5, -0x1.5c11a256dd523p-7, 0x1.fb7e7d2c2de2cp-7,
      0x1.6957221820881p-6, 0x1.e46c73d266806p-7, 0x1.f9c833ebba8bbp-9, -0x1.807018ba22085p-9, -0x1.c9b3bca154974p-10,
      -0x1.2cf9b8e89cab7p-12, -0x1.53d16351c19b5p-16, -0x1.bce1fcf3dc4aap-21, -0x1.08b9293948585p-26,
      -0x1.912202f708f29p-33, -0x1.59c01cc40a0fcp-40},
     {-0x1.b82d16ffccdd6p-6, -0x1.46124176c10eap-8, 0x1.d84dfa1db2c25p-7, 0x1.31233e7c832fap-6, 0x1.3bf4dd3e6fa4ep-7,
      -0x1.c8c7ad9f1137dp-10, -0x1.9276d53d0783cp-8, -0x1.3d8adfaff5a49p-8, -0x1.452ed66043539p-11,
      0x1.596d20c595f2p-11, 0x1.7f4bcb1970ef3p-13, 0x1.1de624d512b61p-16, 0x1.c46b29fa7c7b3p-21, 0x1.3b1b815361ca8p-26,
      0x1.0f1ce9d52dfb3p-32, 0x1.04efd9f00a1afp-39},
     {0x1.903f8c81bb3ep-21, 0x1.70b70c0ec249ap-7, 0x1.a152bd8500de2p-8, -0x1.d4e89dfb5c407p-10, -0x1.8b1b73d6b170ep-8,
      -0x1.0e30cb9a82e41p-8, -0x1.67c0166b06212p-11, 0x1.7cea5ef024ec4p-10, 0x1.0079c5365e895p-10,
      -0x1.3d24bd610eb05p-14, -0x1.693bc5c1e5176p-14, -0x1.8538f8b6d3e99p-17, -0x1.7f59fc4423702p-21,
      -0x1.3d46d6350c81dp-26, -0x1.388b9c49095ep-32, -0x1.51f6c37973ddep-39},
     {0x1.55f4a9af2f239p-8, 0x1.14c10691aeb43p-16, -0x1.e509244515f7p-9, -0x1.ad2d1241aa8d7p-9, -0x1.829be3be31d52p-12,
      0x1.a55b26d894fb9p-10, 0x1.79a4a8ef2641fp-10, 0x1.5ea36526417e4p-12, -0x1.83eab8816cafep-12,
      -0x1.5904aa1bd0f76p-14, 0x1.b94d9317c5401p-16, 0x1.a8f1b31d74dd4p-18, 0x1.107c13d54de7ep-21,
      0x1.10edf142bb37fp-26, 0x1.36501af2839dap-32, 0x1.7a3ace5048562p-39},
     {0x1.013ab2855b541p-15, -0x1.063f616ab86fap-9, -0x1.5b2b6451ff84p-11, 0x1.d2814edb8030cp-11, 0x1.2eae9f1418d9fp-10,
      0x1.2df0d47c8afe5p-12, -0x1.687501727818p-12, -0x1.92e528753246cp-12, -0x1.d9a4e16a2d96cp-18,
      0x1.e8abf9ed9b0ebp-15, -0x1.be002e1c774bep-20, -0x1.671266d1aed7ep-19, -0x1.45cee939b22ep-22,
      -0x1.9660346ad79dcp-27, -0x1.0f479dd758a8dp-32, -0x1.7358e4fac4f92p-39},
     {-0x1.f0ef93b003d4ap-11, 0x1.124e6c49b18b8p-13, 0x1.61db533b01617p-11, 0x1.9d86b5f162479p-12,
      -0x1.6af7e3735268ap-13, -0x1.5d9d425de92afp-12, -0x1.1b11ed3038fdap-13, 0x1.3d334be01da34p-14,
      0x1.08f4ba849a42ep-14, -0x1.f755955033ceap-17, -0x1.c99ebcabf45c6p-19, 0x1.9e3046f2872f7p-21,
      0x1.48f1e04de2be5p-23, 0x1.13c19d47308dbp-27, 0x1.c302c0c5e122ap-33, 0x1.6c86d00e0d559p-39},
     {0x1.4e0e7e1145d64p-13, 0x1.1e62a58bcc487p-12, 0x1.8a3fd4f9a8fd8p-16, -0x1.94f5068e3362fp-13,
      -0x1.270db5b336958p-13, 0x1.f7a1c586d7142p-16, 0x1.73028df758373p-14, 0x1.258298371dc41p-15,
      -0x1.7070ebafd0ccap-16, -0x1.5ba3e3a6c4a0dp-20, 0x1.00552359620b2p-19, -0x1.595d96fb7ce65p-24,
      -0x1.e7509f262f2a8p-25, -0x1.2b3f61b2faa4fp-28, -0x1.25b01008dca42p-33, -0x1.372532abd22a3p-39}}};

// exp(x^2) erfc(x).
alignas(64) inline constexpr Pieces<float, 6> erfcx_float = {
    {0x1.84ap0f, 0x1.ff6p0f, 0x1.3ecp1f, 0x1.8198p1f, 0x1.db7p1f, 0x1.3004p2f, 0x1.719p2f, 0x1.b0b8p2f, 0x1.08fap3f,
     0x1.35e2p3f, 0x1.0dp-4f, 0x1.818p-3f, 0x1.77cp-2f, 0x1.444p-1f, 0x1.c1p-1f, 0x1.218p0f},
    {0x1.464d3cp-2f, 0x1.05cadcp-2f, 0x1.b13928p-3f, 0x1.6d368p-3f, 0x1.2cda34p-3f, 0x1.dc5a36p-4f, 0x1.8a7354p-4f,
     0x1.522b04p-4f, 0x1.15164ep-4f, 0x1.dac4c4p-5f, 0x1.dc297ap-1f, 0x1.a31cf2p-1f, 0x1.61b4f2p-1f, 0x1.1b42ep-1f,
     0x1.dad2fap-2f, 0x1.93c55ep-2f},
    {{-0x1.4987aep-3f, -0x1.b64688p-4f, -0x1.3287fcp-4f, -0x1.ba31b2p-5f, -0x1.2fe6c6p-5f, -0x1.810b12p-6f,
      -0x1.0999a4p-6f, -0x1.87d118p-7f, -0x1.07ee6ap-7f, -0x1.8423ep-8f, -0x1.0197fcp0f, -0x1.a3f2e4p-1f,
      -0x1.3e264p-1f, -0x1.b5e6ecp-2f, -0x1.42a9ccp-2f, -0x1.e47ce2p-3f},
     {0x1.30b5dap-4f, 0x1.57609ap-5f, 0x1.9c72b2p-6f, 0x1.0186d6p-6f, 0x1.2a7228p-7f, 0x1.3170ecp-8f, 0x1.60ef42p-9f,
      0x1.c1721ep-10f, 0x1.f35b2ap-11f, 0x1.3bb3eep-11f, 0x1.ba53e2p-1f, 0x1.5410aap-1f, 0x1.d9ed94p-2f, 0x1.2132e4p-2f,
      0x1.7fba26p-3f, 0x1.03a782p-3f},
     {-0x1.05f7acp-5f, -0x1.fc56f2p-7f, -0x1.095f2p-7f, -0x1.219b2ep-8f, -0x1.1d7ac6p-9f, -0x1.dbfc2p-11f,
      -0x1.cef784p-12f, -0x1.fe8bcap-13f, -0x1.d52546p-14f, -0x1.fef824p-15f, -0x1.441578p-1f, -0x1.da9804p-2f,
      -0x1.3440bcp-2f, -0x1.53aa46p-3f, -0x1.9bbf66p-4f, -0x1.fcee9p-5f},
     {0x1.a740cep-7f, 0x1.660adep-8f, 0x1.4824b2p-9f, 0x1.3b5228p-10f, 0x1.0ab504p-11f, 0x1.6ca7dap-13f, 0x1.2be7p-14f,
      0x1.1f37b6p-15f, 0x1.b5cae6p-17f, 0x1.9b9032p-18f, 0x1.a51b2cp-2f, 0x1.2762fep-2f, 0x1.68cc8p-3f, 0x1.6b40bcp-4f,
      0x1.965c4ep-5f, 0x1.cf1ec2p-6f},
     {-0x1.48baf4p-8f, -0x1.e7a1cep-10f, -0x1.8a31d2p-11f, -0x1.4e96b8p-12f, -0x1.f04524p-14f, -0x1.16f32ep-15f,
      -0x1.84f6b2p-17f, -0x1.42478cp-18f, -0x1.9f7bf8p-20f, -0x1.506962p-21f, -0x1.f736ep-3f, -0x1.4bbb9cp-3f,
      -0x1.86bcfcp-4f, -0x1.697f8p-5f, -0x1.781f42p-6f, -0x1.8f5e86p-7f},
     {0x1.eea4fep-10f, 0x1.393a1cp-11f, 0x1.bada36p-13f, 0x1.64ec7p-14f, 0x1.a5fe94p-16f, 0x1.9d20cp-18f,
      0x1.f09e7ap-20f, 0x1.6975bp-21f, 0x1.866744p-23f, 0x1.e700cap-25f, 0x1.dbd7fap-4f, 0x1.6bc22cp-4f, 0x1.86eaaap-5f,
      0x1.546a34p-6f, 0x1.4510bp-7f, 0x1.346d3ap-8f}}};

alignas(64) inline constexpr Pieces<double, 14> erfcx_double = {
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
     {0x1.3069f56dcd94dp-1, 0x1.e2a9edda1d3a1p-3, 0x1.b56f45eef7e59p-4, 0x1.c0c261ee33b29p-5, 0x1.a6771bb79dcaep-6,
      0x1.5ce53311422b5p-7, 0x1.5f2c5066a94b8p-8, 0x1.9c22dc88fb566p-9, 0x1.8ccec63261894p-10, 0x1.81bc419514ff9p-11,
      0x1.ae1f983b148a5p-12, 0x1.0ba80679bc212p-12, 0x1.1d67cba44425dp-13, 0x1.23809540d5cfp-14, 0x1.54540342e75e5p-15,
      0x1.f15179626ec5dp-16},
     {-0x1.9ff0ef1a65af9p-2, -0x1.108b5276d11f3p-3, -0x1.9b635ac62488ap-5, -0x1.649d2277cfc8ap-6, -0x1.11a8aa132e0aep-7,
      -0x1.5dc7efa931e5cp-9, -0x1.1dbcca253d713p-10, -0x1.1be8d3df77e5dp-11, -0x1.b1137b3784c0fp-13,
      -0x1.4d4386ff420bfp-14, -0x1.32f98cddb54fap-15, -0x1.46dc5015dd4b3p-16, -0x1.1b2c6f57970dcp-17,
      -0x1.cefeb7b77a72bp-19, -0x1.c417e29312ec4p-20, -0x1.299b89e70bd38p-20},
     {0x1.fc4b8f111c10bp-3, 0x1.19841aad8c84dp-4, 0x1.68a25a6641908p-6, 0x1.0c22307753b46p-7, 0x1.547973beda226p-9,
      0x1.557ffbf7fe1afp-11, 0x1.c885465fc83f9p-13, 0x1.81e07f7f151dbp-14, 0x1.d485a7dd31cb4p-16, 0x1.1e50bcec56e36p-17,
      0x1.b479042dc5cb6p-19, 0x1.8e055834da201p-20, 0x1.186d1345795efp-21, 0x1.6f3d6c7901a9ep-23, 0x1.2c062a092b5dep-24,
      0x1.63f18e0fd95f5p-25},
     {-0x1.1b9c71339fbd8p-3, -0x1.0ddaf7976ea5dp-5, -0x1.299636d703628p-7, -0x1.8000493ded934p-9,
      -0x1.98568e73d092bp-11, -0x1.4543d46b1591fp-13, -0x1.665d634cdca66p-15, -0x1.02d2effa771d8p-16,
      -0x1.f68a8e3348278p-19, -0x1.e93f57b4d8627p-21, -0x1.351c8e1f70c87p-22, -0x1.e34d165d5fd92p-24,
      -0x1.152e68c405f62p-25, -0x1.22ef24b395aefp-27, -0x1.8ddf229188c33p-29, -0x1.a96b3047f5fc7p-30},
     {0x1.252a14cbf0aa5p-4, 0x1.e5288da96cf57p-7, 0x1.d1b695abef5aep-9, 0x1.07358062f2c9p-10, 0x1.d98b8af5ef2dcp-13,
      0x1.2eb04e53621d8p-15, 0x1.14a7bd0092dfcp-17, 0x1.56da3d88198aep-19, 0x1.0b44ce47f541p-21, 0x1.9fbc7293d6786p-24,
      0x1.b42b7a61bb1d4p-26, 0x1.249a586e65dfep-27, 0x1.1175c3403cd02p-29, 0x1.cc68614a010b6p-32, 0x1.0797242fd886fp-33,
      0x1.fc1a0fc896e21p-35},
     {-0x1.1ba30cad90f7ep-5, -0x1.9c34248d37857p-8, -0x1.5b8bc8ea65057p-10, -0x1.5ad1a972abaa4p-12,
      -0x1.0a3303935329cp-14, -0x1.13945d90d2697p-17, -0x1.a462280d8987p-20, -0x1.c0a7d32420696p-22,
      -0x1.19f887e4e3132p-24, -0x1.5f61b0aaee511p-27, -0x1.32932550ca8ap-29, -0x1.614fdc9fbe41bp-31,
      -0x1.0d4908e1c362cp-33, -0x1.6bdc6a122bc09p-36, -0x1.5cf6056db1e21p-38, -0x1.2f2f298a1dc5ap-39},
     {0x1.02e311eb685eap-6, 0x1.4d0c308d706b6p-9, 0x1.f0fe6df139e06p-12, 0x1.b8bce754806f7p-14, 0x1.22c9cfb6a2304p-16,
      0x1.eb82bcaf57db2p-20, 0x1.3a8990a5a1dc4p-22, 0x1.221c73d92c5d4p-24, 0x1.271d259308a43p-27, 0x1.276ce228fc89ep-30,
      0x1.ad5f990bca6e1p-33, 0x1.a9702c497e138p-35, 0x1.08aeaa0ffe69ap-37, 0x1.1f36bbbf88ccdp-40, 0x1.cd96e4ff17ca3p-43,
      0x1.6a3067b451b72p-44},
     {-0x1.c09fd6c495edbp-8, -0x1.01289a938a98cp-10, -0x1.55c0ce7a85de8p-13, -0x1.0edc104bd7267p-15,
      -0x1.35390fb8adaa9p-18, -0x1.adc9d776e5211p-22, -0x1.cfd03dbc0cca2p-25, -0x1.72ec2ab18a9ecp-27,
      -0x1.32788645a3944p-30, -0x1.ee2f7c3ca1807p-34, -0x1.2b937972e0c66p-36, -0x1.fee75ea4989f1p-39,
      -0x1.03ae76d1fb647p-41, -0x1.c4e256425242ap-45, -0x1.3105fffe84379p-47, -0x1.154d09807d3dbp-48},
     {0x1.72d78b265d316p-9, 0x1.7d0a322d77f07p-12, 0x1.c5718ce9e62a5p-15, 0x1.42b3542072025p-17, 0x1.409966f401332p-20,
      0x1.70d935be76675p-24, 0x1.5128029f615dap-27, 0x1.d504f84072ee4p-30, 0x1.3bdf23e0a39dep-33, 0x1.9b3cd28f27457p-37,
      0x1.a08ad4a1f50efp-40, 0x1.3202c0890c656p-42, 0x1.fc9b4511213ffp-46, 0x1.64a049b4bbd24p-49, 0x1.92cac6bdb30bbp-52,
      -0x1.a2144130a4f8dp-52},
     {-0x1.2592c771f2316p-10, -0x1.0fb6d8f551728p-13, -0x1.22d877d195754p-16, -0x1.747887e6f99efp-19,
      -0x1.445db5fe14f38p-22, -0x1.36bd66f4a0e7ep-26, -0x1.e34365c082743p-30, -0x1.2542c9249ec22p-32,
      -0x1.42a5f318f7103p-36, -0x1.544bba446f5f1p-40, -0x1.20a2d4c53be01p-43, -0x1.6b7e9c14579d8p-46,
      -0x1.f0898b112f0b2p-50, -0x1.18447647e4d76p-53, -0x1.09f85f222216p-56, 0x1.b53d75334b77ap-50},
     {0x1.bf8963868ad5fp-12, 0x1.768ff655a52a5p-15, 0x1.6994e7c251f4dp-18, 0x1.b1a2245b29c0ep-21, 0x1.42cc3163db2a8p-24,
      0x1.0187a8cc8f202p-28, 0x1.5664c44abde08p-32, 0x1.6ac86d01e67e1p-35, 0x1.45b7117340f9dp-39, 0x1.17803da4ab8ddp-43,
      0x1.8be5918e4fceep-47, 0x1.9e25d08b6914p-50, 0x1.e48ce999bba4ap-54, 0x1.b89b29f5dce92p-58, 0x1.5e5ffa5bd3455p-61,
      0x1.07b9c50a971bbp-50},
     {-0x1.515801b2a90f6p-13, -0x1.feecd142fad22p-17, -0x1.c505649be4ecbp-20, -0x1.19cbd08d26031p-22,
      -0x1.4577637fff1fdp-26, -0x1.b4ce99c21a591p-31, -0x1.f034db0f4cd4fp-35, -0x1.c972ca63ecd3ep-38,
      -0x1.5d0bf05e03708p-42, -0x1.dc005d27062ffp-47, -0x1.117d15b6a005cp-50, -0x1.50f978d4b942cp-53,
      -0x1.f3243bcd3c22ap-58, -0x1.6967e87c9d1d4p-62, -0x1.c1f658750c9b4p-66, -0x1.30a6e6a268bb5p-50},
     {0x1.c89b7dedf6e2ep-15, 0x1.3d041d948a1b6p-18, 0x1.172670f94d0a8p-21, -0x1.228caabe31094p-24,
      0x1.12420b53c89c8p-28, 0x1.5e7ad284287d2p-33, 0x1.4707f47cbd42cp-37, 0x1.1f0ccb437c4a2p-40, 0x1.8486e78d5c9a6p-45,
      0x1.a69ea19a2aa2ep-50, 0x1.ddde5d061915cp-54, 0x1.2b06c3ee333a6p-55, 0x1.e42571bdd28afp-62, 0x1.162951888381dp-66,
      0x1.323180b81049ap-70, -0x1.8b17b9c739ca3p-51}}};

// Error below 1 ulp. The first piece has its centre at 0, and x itself for a value.
inline Float erf(Float x) {
  const Float z = abs(x) > 4.0f ? broadcast(4.0f) : abs(x);  // erf is 1 from 3.92
  const Float shifted = z + erf_shift_float;
  const Int32 piece = (Int32)shifted >> 20;
  const Float value = shifted < 1.5f ? z : pick(erf_float.value, piece);
  const Float t = z - pick(erf_float.centre, piece);
  return flip(fma(t, slope(erf_float, piece, t), value), (Int32)x);
}
inline Double erf(Double x) {
  const Double z = abs(x) > 5.97 ? broadcast(5.97) : abs(x);  // erf is 1 from 5.93
  const Double shifted = z + erf_shift_double;
  const auto piece = (Int64)((UInt64)shifted >> 49);
  const Double value = shifted < 2.25 ? z : pick(erf_double.value, piece);
  const Double t = z - pick(erf_double.centre, piece);
  return flip(fma(t, slope(erf_double, piece, t), value), (Int64)x);
}

// exp(-x^2) = 2^power (1 + p), with the rounding error of the square carried into the exponent.
template <class V>
struct Gaussian {
  V p;
  decltype(V{} < V{}) power;
};
inline Gaussian<Float> split_gaussian(Float x) {
  const Float square = x * x;
  const Float rounded = fma(square, broadcast(-0x1.715476p0f), broadcast(round_float));
  const Float n = rounded - round_float;
  const Float head = fma(n, broadcast(-0x1.62e43p-1f), -square);
  const Float tail = fma(n, broadcast(0x1.05c61p-29f), fma(x, -x, square));
  const Float r = head + tail;
  Float p = fma(r, broadcast(0x1.6d5152p-10f), broadcast(0x1.123e34p-7f));
  p = fma(r, p, broadcast(0x1.5554e4p-5f));
  p = fma(r, p, broadcast(0x1.55548ap-3f));
  p = fma(r, p, broadcast(0x1p-1f));
  return {head + fma(r * r, p, tail), (Int32)rounded - (Int32)broadcast(round_float)};
}
inline Gaussian<Double> split_gaussian(Double x) {
  const Double square = x * x;
  const Double rounded = fma(square, broadcast(-0x1.71547652b82fep0), broadcast(round_double));
  const Double n = rounded - round_double;
  const Double head = fma(n, broadcast(-0x1.62e42fefa39efp-1), -square);
  const Double tail = fma(n, broadcast(-0x1.abc9e3b39803fp-56), fma(x, -x, square));
  const Double r = head + tail;
  Double p = fma(r, broadcast(0x1.af6eafadd0505p-26), broadcast(0x1.28b0ff01ccbf9p-22));
  p = fma(r, p, broadcast(0x1.71ddee594d11cp-19));
  p = fma(r, p, broadcast(0x1.a01995b2d6f52p-16));
  p = fma(r, p, broadcast(0x1.a01a01b44d8f5p-13));
  p = fma(r, p, broadcast(0x1.6c16c186096dep-10));
  p = fma(r, p, broadcast(0x1.111111110e9ebp-7));
  p = fma(r, p, broadcast(0x1.555555554fdffp-5));
  p = fma(r, p, broadcast(0x1.555555555555cp-3));
  p = fma(r, p, broadcast(0x1.000000000000cp-1));
  return {head + fma(r * r, p, tail), (Int64)rounded - (Int64)broadcast(round_double)};
}

// (value + change) (1 + p)
template <class V, class I, class T, int terms>
inline V scaled_erfc(const Pieces<T, terms>& pieces, I piece, V x, V p) {
  const V t = x - pick(pieces.centre, piece);
  const V value = pick(pieces.value, piece);
  const V change = t * slope(pieces, piece, t);
  return value + fma(value + change, p, change);
}

// Error below 1.5 ulp, denormals included. erfc(-x) = 2 - erfc(x).
inline Float erfc(Float x) {
  Float z = abs(x);
  const bool normal = __builtin_expect(all_within(z, 9.19f), 1);
  if (!normal) z = z > 10.1f ? broadcast(10.1f) : z;  // erfc is zero from 10.06
  const auto [p, power] = split_gaussian(z);
  const Float scaled = scaled_erfc(erfcx_float, (Int32)(z + erfc_shift_float) >> 21, z, p);
  const Float y = normal ? (Float)((Int32)scaled + (power << 23)) : scale(scaled, power);
  return x < 0.0f ? 2.0f - y : y;
}
inline Double erfc(Double x) {
  Double z = abs(x);
  const bool normal = __builtin_expect(all_within(z, 26.54), 1);
  if (!normal) z = z > 27.3 ? broadcast(27.3) : z;  // erfc is zero from 27.23
  const auto [p, power] = split_gaussian(z);
  const Double scaled = scaled_erfc(erfcx_double, (Int64)((UInt64)(z + erfc_shift_double) >> 50), z, p);
  const Double y = normal ? (Double)((Int64)scaled + (power << 52)) : scale(scaled, power);
  return x < 0.0 ? 2.0 - y : y;
}

}  // namespace torchad_ext
