/* CPUID and XGETBV -> what this CPU and its operating system let us use. The only file that knows CPUs. */
#include <cpuid.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu.h"

#define AVX_STATE 0x06    /* XMM and YMM registers */
#define AVX512_STATE 0xe6 /* and masks, ZMM, ZMM16-31 */
#define AMX_STATE 0x60000 /* shapes of tiles, and tiles */
#define AVX_VNNI (1u << 4)
#define AMX (1u << 24 | 1u << 25) /* tiles, and their products of int8 */

/* ecx of leaf 1; eax (the last subleaf), ebx, ecx and edx of leaf 7; eax of its subleaf 1; the state that the system
 * saves. */
static unsigned features_of(unsigned c1, unsigned last7, unsigned b7, unsigned c7, unsigned d7, unsigned a71,
                            uint64_t state) {
    const unsigned fma = bit_AVX | bit_FMA, avx512bw = bit_AVX512F | bit_AVX512BW;
    const unsigned avx512 = avx512bw | bit_AVX512DQ | bit_AVX512VL;
    if ((c1 & fma) != fma || !(b7 & bit_AVX2)) return 0;
    if (!(c1 & bit_OSXSAVE) || (state & AVX_STATE) != AVX_STATE) return CQ_UNSAVED_AVX;
    unsigned features = CQ_HAS_AVX2;
    if (last7 >= 1 && (a71 & AVX_VNNI)) features |= CQ_HAS_AVXVNNI;
    const int saved = (state & AVX512_STATE) == AVX512_STATE;
    if ((b7 & avx512bw) == avx512bw) features |= saved ? CQ_HAS_AVX512BW : CQ_UNSAVED_AVX512BW;
    if ((b7 & avx512) == avx512 && (c7 & bit_AVX512VNNI)) features |= saved ? CQ_HAS_AVX512VNNI : CQ_UNSAVED_AVX512;
    if ((d7 & AMX) == AMX) features |= (state & AMX_STATE) == AMX_STATE ? CQ_HAS_AMX : CQ_UNSAVED_AMX;
    return features;
}

/* What the system saves when it changes threads. An old one does not know the instruction: ask OSXSAVE first. */
static uint64_t saved_state(void) {
    uint32_t lo, hi;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

unsigned cq_cpu_features(void) {
    unsigned a, b, c1, last7, b7, c7, d7, a71 = 0, d;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !__get_cpuid_count(7, 0, &last7, &b7, &c7, &d7)) return 0;
    if (last7 >= 1) __get_cpuid_count(7, 1, &a71, &b, &a, &d);
    return features_of(c1, last7, b7, c7, d7, a71, c1 & bit_OSXSAVE ? saved_state() : 0);
}

/* Linux saves tiles only for processes that ask (8 KB a thread). Asking again changes nothing. */
int cq_may_use_tiles(void) {
    enum { REQUEST = 0x1023, TILES = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return !syscall(SYS_arch_prctl, REQUEST, TILES);
}
