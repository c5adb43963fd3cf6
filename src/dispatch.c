/* Chooses one table of kernels for the process: the best that the CPU has, or the one that CQ_ISA names. The only
 * chooser. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "kernel.h"

static cq_kernels chosen;
const cq_kernels *const cq_active = &chosen;

/* Best first. A set is its table, in which `change` puts some functions in the place of others. */
static const struct {
    const char *name;
    const cq_kernels *table;
    void (*change)(cq_kernels *to);
    unsigned needs;
} sets[] = {{"amx", &cq_kernels_avx512vnni, cq_products_amx, CQ_HAS_AVX512VNNI | CQ_HAS_AMX},
            {"avx512vnni", &cq_kernels_avx512vnni, NULL, CQ_HAS_AVX512VNNI},
            {"avxvnni", &cq_kernels_avx2, cq_products_avxvnni_vex, CQ_HAS_AVX2 | CQ_HAS_AVXVNNI},
            {"avxvnni", &cq_kernels_avx2, cq_products_avxvnni_evex, CQ_HAS_AVX512VNNI},
            {"avx512bw", &cq_kernels_avx2, cq_products_avx512bw, CQ_HAS_AVX2 | CQ_HAS_AVX512BW},
            {"avx2", &cq_kernels_avx2, NULL, CQ_HAS_AVX2},
            {"scalar", &cq_kernels_scalar, NULL, 0}};
enum { SETS = sizeof sets / sizeof *sets };

/* Whether this process can run a set. */
static int runs(int i, unsigned features) {
    const unsigned needs = sets[i].needs;
    return (features & needs) == needs && (!(needs & CQ_HAS_AMX) || cq_may_use_tiles());
}

int cq_select(void) {
    const unsigned features = cq_cpu_features();
    const char *want = getenv("CQ_ISA");
    if (want && !*want) want = NULL;
    int known = 0;
    for (int i = 0; i < SETS; i++) {
        if (want && strcmp(want, sets[i].name)) continue;
        known = 1;
        if (!runs(i, features)) continue;
        chosen = *sets[i].table;
        if (sets[i].change) sets[i].change(&chosen);
        return 0;
    }
    return known ? 2 : 1;
}

const char *cq_isa_lacks(const char *name) {
    const unsigned features = cq_cpu_features();
    const char *why = "not known";
    for (int i = 0; i < SETS; i++) {
        if (strcmp(name, sets[i].name)) continue;
        if (runs(i, features)) return NULL;
        const unsigned unsaved = (features & CQ_UNSAVED_AVX512 ? CQ_HAS_AVX512VNNI : 0) |
                                 (features & CQ_UNSAVED_AVX512BW ? CQ_HAS_AVX512BW : 0) |
                                 (features & CQ_UNSAVED_AMX ? CQ_HAS_AMX : 0);
        if ((features & sets[i].needs) == sets[i].needs)
            why = "the operating system does not let this process use its registers";
        else if (features & CQ_UNSAVED_AVX || sets[i].needs & unsaved)
            why = "the operating system does not save its registers";
        else why = "this CPU does not have it";
    }
    return why;
}

const char *cq_status_text(cq_status status) {
    switch (status) {
    case CQ_OK: break;
    case CQ_NO_MEMORY: return "no memory for work arrays";
    case CQ_NOT_FINITE: return "NaN or Inf in row {}";
    case CQ_NOT_FINITE_AT: return "NaN or Inf at index {}";
    case CQ_OVERFLOW:
        return "a result does not fit int32, as it may with a weight's zero points and K above 33,025; split K and "
               "add, or pack with zero_point=0";
    case CQ_NO_ROOM:
        return "sequence {} has kept no room, no angles or no scales for its new tokens, or is longer than the bias or "
               "the relative positions reach";
    case CQ_OUT_OF_RANGE: return "an id, position, type or offset of row or sequence {} is out of range";
    }
    return "done";
}

const char *cq_isa(void) { return cq_active->name; }
const char *cq_compiler(void) { return "gcc " __VERSION__; }
double cq_peak_i8(int64_t repeats) { return cq_active->peak_i8(repeats); }
double cq_peak_f32(int64_t repeats) { return cq_active->peak_f32(repeats); }
