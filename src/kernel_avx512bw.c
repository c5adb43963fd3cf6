/* AVX-512 without VNNI: products of clipped codes on 512 bits. All else is AVX2's. */
#include <immintrin.h>
#include <string.h>

#include "kernel.h"

#define ISA(name) name##_avx512bw
#define INLINE static inline __attribute__((always_inline))

INLINE void ISA(store_i8)(const int32_t *acc, int64_t acc_stride, int rows, const cq_strip *s, int64_t row) {
    cq_kernels_avx2.store_i8(acc, acc_stride, rows, s, row);
}

#include "tiles_clipped.h"

void cq_products_avx512bw(cq_kernels *to) {
    to->name = "avx512bw", to->strip_clipped = ISA(strip_clipped), to->excess_share = EXCESS_SHARE,
    to->excess_share_few = EXCESS_SHARE_FEW;
    to->peak_i8 = ISA(peak_i8);
}
