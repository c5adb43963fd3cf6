/* Chooses one table of kernels for the process: the best that the CPU has, or the one that CQ_ISA names. The only chooser. */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

const cq_kernels *cq_active;

int cq_select(void) {
    static const struct { const cq_kernels *kernels; unsigned needs; } tables[] = {
        {&cq_kernels_avx512vnni, CQ_HAS_AVX512VNNI}, {&cq_kernels_avx2, CQ_HAS_AVX2}, {&cq_kernels_scalar, 0}};
    const unsigned features = cq_cpu_features();
    const char *want = getenv("CQ_ISA");
    if (want && !*want) want = NULL;
    int known = 0;
    for (int i = 0; i < 3; i++) {
        if (want && strcmp(want, tables[i].kernels->name)) continue;
        known = 1;
        if ((features & tables[i].needs) != tables[i].needs) continue;
        cq_active = tables[i].kernels;
        return 0;
    }
    return known ? 2 : 1;
}

const char *cq_isa(void) { return cq_active->name; }
double cq_peak_i8(int64_t repeats) { return cq_active->peak_i8(repeats); }
double cq_peak_f32(int64_t repeats) { return cq_active->peak_f32(repeats); }
