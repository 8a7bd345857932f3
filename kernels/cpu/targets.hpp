// Which instruction sets the CPU kernels are compiled for. Include before any Highway header.
//
// x86: AVX2 (with FMA and F16C), AVX3 (AVX-512 F, BW, DQ, VL), AVX3_DL (with VNNI, VBMI2), and
// portable code for anything older. SSE builds would only add compile time: machines without
// AVX2 are too slow for long contexts anyway.
#pragma once

#define HWY_WANT_AVX3_DL 1
// Arm: NEON. Vectors whose length is unknown at compile time cannot lie in arrays.
#define SHOAL_DISABLED_TARGETS \
    (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#ifdef SHOAL_SANITIZED  // AVX3 is AVX3_DL with fewer instructions; both take a minute to compile
#define HWY_DISABLED_TARGETS (SHOAL_DISABLED_TARGETS | HWY_AVX3)
#else
#define HWY_DISABLED_TARGETS SHOAL_DISABLED_TARGETS
#endif
