/* What the CPU and its operating system let us use. Only the chooser of kernels asks. */
#ifndef CQ_CPU_H
#define CQ_CPU_H

/* What this CPU and operating system support (CPUID, XGETBV). AVX2 includes FMA; AVX512BW includes F; AVX512VNNI
 * includes F, BW, DQ, VL. UNSAVED: the CPU has it, but the system does not save its registers. */
enum {
    CQ_HAS_AVX2 = 1,
    CQ_HAS_AVX512VNNI = 2,
    CQ_HAS_AVXVNNI = 4,
    CQ_UNSAVED_AVX = 8,
    CQ_UNSAVED_AVX512 = 16,
    CQ_HAS_AVX512BW = 32,
    CQ_UNSAVED_AVX512BW = 64,
    CQ_HAS_AMX = 128, /* tiles, and their products of int8 */
    CQ_UNSAVED_AMX = 256
};
unsigned cq_cpu_features(void);
/* Asks the system to let this process use AMX; returns whether it does. */
int cq_may_use_tiles(void);
#endif
