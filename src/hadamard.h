/* Hadamard transforms of a row. Included by the kernels that have lanes. */

/* Lanes i with i & h become swapped - a, the others swapped + a, where swapped has lane i ^ h in lane i: one rounding
 * each, as f32_fma multiplies by 1 and -1 exactly. */
static const float hadamard_signs[4][16] = {
    {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
    {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
    {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
    {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
};

/* x (n) in place; `block` a power of two from 16 that divides n. */
static void ISA(hadamard)(float *x, int64_t n, int64_t block) {
    const f32x16 by_1 = f32_load(hadamard_signs[0]), by_2 = f32_load(hadamard_signs[1]),
                 by_4 = f32_load(hadamard_signs[2]), by_8 = f32_load(hadamard_signs[3]),
                 factor = f32_div(f32_set(1.0f), f32_sqrt(f32_set((float)block)));
    for (int64_t i = 0; i < n; i += 16) {
        f32x16 v = f32_mul(f32_load(x + i), factor);
        v = f32_fma(v, by_1, f32_swap_1(v)), v = f32_fma(v, by_2, f32_swap_2(v));
        v = f32_fma(v, by_4, f32_swap_4(v)), v = f32_fma(v, by_8, f32_swap_8(v));
        f32_store(x + i, v);
    }
    for (int64_t start = 0; start < n; start += block)
        for (int64_t h = 16; h < block; h *= 2)
            for (int64_t i = start; i < start + block; i += 2 * h)
                for (int64_t j = i; j < i + h; j += 16) {
                    const f32x16 a = f32_load(x + j), b = f32_load(x + j + h);
                    f32_store(x + j, f32_add(a, b)), f32_store(x + j + h, f32_sub(a, b));
                }
}
