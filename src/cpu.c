/* CPUID and XGETBV -> what this CPU and its operating system let us use. The only file that knows CPUs. */
#include <cpuid.h>

#include "cq.h"

static uint64_t enabled_state(void) {
    uint32_t lo, hi;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

unsigned cq_cpu_features(void) {
    unsigned a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA)) return 0;
    const uint64_t state = enabled_state();
    if ((state & 0x6) != 0x6) return 0; /* XMM and YMM saved by the system */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    features |= CQ_HAS_AVX2;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & 0xe6) == 0xe6 && (b & avx512) == avx512 && (c & bit_AVX512VNNI)) /* and opmask, ZMM, ZMM16-31 */
        features |= CQ_HAS_AVX512VNNI;
    return features;
}
