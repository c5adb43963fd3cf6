/* 16 lanes as two registers of AVX2. Included by the kernels that have them, which define INLINE. */
typedef struct {
    __m256 lo, hi;
} f32x16;
typedef struct {
    __m256i lo, hi;
} i32x16;

#define OP1(type, op, a) ((type){op((a).lo), op((a).hi)})
#define OP2(type, op, a, b) ((type){op((a).lo, (b).lo), op((a).hi, (b).hi)})

INLINE __m256i first(int64_t n) { /* lanes 0..n-1 of 8; n may be below 0 or above 8 */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE f32x16 f32_set(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE f32x16 f32_load(const float *p) { return (f32x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE f32x16 f32_load_n(const float *p, int64_t n) {
    return (f32x16){_mm256_maskload_ps(p, first(n)), _mm256_maskload_ps(p + 8, first(n - 8))};
}
INLINE void f32_store(float *p, f32x16 x) { _mm256_storeu_ps(p, x.lo), _mm256_storeu_ps(p + 8, x.hi); }
INLINE void f32_store_n(float *p, f32x16 x, int64_t n) {
    _mm256_maskstore_ps(p, first(n), x.lo), _mm256_maskstore_ps(p + 8, first(n - 8), x.hi);
}
INLINE f32x16 f32_add(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_add_ps, a, b); }
INLINE f32x16 f32_sub(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_sub_ps, a, b); }
INLINE f32x16 f32_mul(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_mul_ps, a, b); }
INLINE f32x16 f32_div(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_div_ps, a, b); }
INLINE f32x16 f32_sqrt(f32x16 a) { return OP1(f32x16, _mm256_sqrt_ps, a); }
INLINE f32x16 f32_fma(f32x16 a, f32x16 b, f32x16 c) {
    return (f32x16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
INLINE f32x16 f32_min(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_min_ps, a, b); } /* a < b ? a : b */
INLINE f32x16 f32_max(f32x16 a, f32x16 b) { return OP2(f32x16, _mm256_max_ps, a, b); } /* a > b ? a : b */
INLINE int f32_any_not_below(f32x16 a, f32x16 b) {                                     /* NaN too */
    return _mm256_movemask_ps(
        _mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ)));
}
INLINE __m256 where_zero(__m256 x, __m256 yes, __m256 no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_EQ_OQ));
}
INLINE f32x16 f32_where_zero(f32x16 x, f32x16 yes, f32x16 no) {
    return (f32x16){where_zero(x.lo, yes.lo, no.lo), where_zero(x.hi, yes.hi, no.hi)};
}
INLINE f32x16 f32_abs(f32x16 a) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return (f32x16){_mm256_and_ps(a.lo, magnitude), _mm256_and_ps(a.hi, magnitude)};
}
/* lane i ^ 1, 2, 4 or 8 */
#define SWAP8_1(a) _mm256_permute_ps(a, 0xb1)
#define SWAP8_2(a) _mm256_permute_ps(a, 0x4e)
#define SWAP8_4(a) _mm256_permute2f128_ps(a, a, 0x01)
INLINE f32x16 f32_swap_1(f32x16 a) { return OP1(f32x16, SWAP8_1, a); }
INLINE f32x16 f32_swap_2(f32x16 a) { return OP1(f32x16, SWAP8_2, a); }
INLINE f32x16 f32_swap_4(f32x16 a) { return OP1(f32x16, SWAP8_4, a); }
INLINE f32x16 f32_swap_8(f32x16 a) { return (f32x16){a.hi, a.lo}; }
#define ROUND8(a) _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE f32x16 f32_round(f32x16 a) { return OP1(f32x16, ROUND8, a); }
INLINE f32x16 f32_fill_n(f32x16 a, int64_t n, float x) {
    const __m256 fill = _mm256_set1_ps(x);
    return (f32x16){_mm256_blendv_ps(fill, a.lo, _mm256_castsi256_ps(first(n))),
                    _mm256_blendv_ps(fill, a.hi, _mm256_castsi256_ps(first(n - 8)))};
}
INLINE f32x16 f32_keep_n(f32x16 a, int64_t n) { return f32_fill_n(a, n, 0.0f); }

INLINE i32x16 i32_set(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE i32x16 i32_load(const int32_t *p) {
    return (i32x16){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
INLINE i32x16 i32_load_n(const int32_t *p, int64_t n) {
    return (i32x16){_mm256_maskload_epi32(p, first(n)), _mm256_maskload_epi32(p + 8, first(n - 8))};
}
INLINE void i32_store(int32_t *p, i32x16 x) {
    _mm256_storeu_si256((__m256i *)p, x.lo), _mm256_storeu_si256((__m256i *)(p + 8), x.hi);
}
INLINE void i32_store_n(int32_t *p, i32x16 x, int64_t n) {
    _mm256_maskstore_epi32(p, first(n), x.lo), _mm256_maskstore_epi32(p + 8, first(n - 8), x.hi);
}
INLINE i32x16 i32_add(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_add_epi32, a, b); }
INLINE i32x16 i32_sub(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_sub_epi32, a, b); }
INLINE i32x16 i32_mul(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_mullo_epi32, a, b); }
INLINE i32x16 i32_or(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_or_si256, a, b); }
INLINE i32x16 i32_xor(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_xor_si256, a, b); }
INLINE i32x16 i32_and(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_and_si256, a, b); }
INLINE i32x16 i32_max(i32x16 a, i32x16 b) { return OP2(i32x16, _mm256_max_epi32, a, b); }
INLINE i32x16 i32_fill_n(i32x16 a, int64_t n, int32_t x) {
    const __m256i fill = _mm256_set1_epi32(x);
    return (i32x16){_mm256_blendv_epi8(fill, a.lo, first(n)), _mm256_blendv_epi8(fill, a.hi, first(n - 8))};
}
#define i32_shl(a, n) ((i32x16){_mm256_slli_epi32((a).lo, n), _mm256_slli_epi32((a).hi, n)})
#define i32_sar(a, n) ((i32x16){_mm256_srai_epi32((a).lo, n), _mm256_srai_epi32((a).hi, n)})

INLINE f32x16 f32_from_i32(i32x16 a) { return OP1(f32x16, _mm256_cvtepi32_ps, a); }
INLINE i32x16 i32_from_f32(f32x16 a) { return OP1(i32x16, _mm256_cvtps_epi32, a); }
INLINE f32x16 f32_bits(i32x16 a) { return OP1(f32x16, _mm256_castsi256_ps, a); }
INLINE i32x16 i32_bits(f32x16 a) { return OP1(i32x16, _mm256_castps_si256, a); }
/* By bit 3 the upper half's entry, which is the lower one's xor their difference: a blend takes three instructions. */
INLINE __m256 pick8(f32x16 table, __m256i i) {
    const __m256 is_high = _mm256_castsi256_ps(_mm256_srai_epi32(_mm256_slli_epi32(i, 28), 31));
    const __m256 apart = _mm256_permutevar8x32_ps(_mm256_xor_ps(table.lo, table.hi), i);
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(table.lo, i), _mm256_and_ps(apart, is_high));
}
INLINE f32x16 f32_pick(const float *table, i32x16 i) { /* by i's low 4 bits */
    const f32x16 t = f32_load(table);
    return (f32x16){pick8(t, i.lo), pick8(t, i.hi)};
}

INLINE __m128i load_8(const uint8_t *p, int64_t n) { /* AVX2 has no masked byte load: go through a buffer at a tail */
    if (n == 16) return _mm_loadu_si128((const __m128i *)p);
    uint8_t all[16] = {0};
    memcpy(all, p, (size_t)n);
    return _mm_loadu_si128((const __m128i *)all);
}
INLINE i32x16 i32_load_u8(const uint8_t *p, int64_t n) {
    const __m128i x = load_8(p, n);
    return (i32x16){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
INLINE i32x16 i32_load_s8(const uint8_t *p, int64_t n) {
    const __m128i x = load_8(p, n);
    return (i32x16){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
INLINE void i32_store_8(uint8_t *p, i32x16 a, int64_t n) {
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i lo = _mm256_shuffle_epi8(a.lo, low), hi = _mm256_shuffle_epi8(a.hi, low);
    const __m128i lo4 = _mm_unpacklo_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    const __m128i hi4 = _mm_unpacklo_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    const __m128i all = _mm_unpacklo_epi64(lo4, hi4);
    if (n == 16) {
        _mm_storeu_si128((__m128i *)p, all);
        return;
    }
    uint8_t buffer[16];
    _mm_storeu_si128((__m128i *)buffer, all);
    memcpy(p, buffer, (size_t)n);
}

/* 32 codes of four registers, each in range; packing works inside halves, which are put in order at the end. */
INLINE __m256i pack32(__m256i a, __m256i b, __m256i c, __m256i d, int is_signed) {
    const __m256i ab = _mm256_packs_epi32(a, b), cd = _mm256_packs_epi32(c, d);
    const __m256i all = is_signed ? _mm256_packs_epi16(ab, cd) : _mm256_packus_epi16(ab, cd);
    return _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE void i32_store_8x4(uint8_t *p, i32x16 a, i32x16 b, i32x16 c, i32x16 d, int is_signed) {
    _mm256_storeu_si256((__m256i *)p, pack32(a.lo, a.hi, b.lo, b.hi, is_signed));
    _mm256_storeu_si256((__m256i *)(p + 32), pack32(c.lo, c.hi, d.lo, d.hi, is_signed));
}

/* Across lanes: i with i + 8, then + 4, + 2, + 1, on every instruction set. */
INLINE float f32_sum(f32x16 a) {
    const __m256 b = _mm256_add_ps(a.lo, a.hi);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
INLINE float f32_max_across(f32x16 a) {
    const __m256 b = _mm256_max_ps(a.lo, a.hi);
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
INLINE int32_t i32_sum(i32x16 a) {
    int32_t x[8], sum = 0;
    _mm256_storeu_si256((__m256i *)x, _mm256_add_epi32(a.lo, a.hi));
    for (int i = 0; i < 8; i++) sum += x[i];
    return sum;
}
INLINE int32_t i32_max_across(i32x16 a) {
    int32_t x[8];
    _mm256_storeu_si256((__m256i *)x, _mm256_max_epi32(a.lo, a.hi));
    int32_t best = x[0];
    for (int i = 1; i < 8; i++) best = x[i] > best ? x[i] : best;
    return best;
}
