/* exp, log, sin, cos, tanh and powers in float64, of additions, multiplications and divisions alone, so that every CPU
 * gives the same bits. The C library chooses its own by CPU, and those with fma round otherwise.
 *
 * A pair stands for the sum of `hi` and a much smaller `lo`. Series are Taylor's; in the ranges to which arguments are
 * reduced, what they leave out is below 2^-58 of the result. */
#include <math.h>
#include <string.h>

#include "logarithms.h"
#include "passes.h"

typedef struct {
    double hi, lo;
} pair;
typedef unsigned __int128 u128;

static inline uint64_t bits_of(double x) {
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}
static inline double of_bits(uint64_t u) {
    double x;
    memcpy(&x, &u, 8);
    return x;
}

#define SHIFT 0x1.8p52 /* added to a small number, it leaves the nearest whole number in the sum's low bits */
#define LN2_HI 0x1.62e42fefa38p-1 /* a multiple of 2^-42: whole numbers below 2^11 times it are exact */
#define LN2_LO 0x1.ef35793c7673p-45
#define PI_2_HI 0x1.921fb54442d18p+0
#define PI_2_LO 0x1.1a62633145c07p-54

static inline double whole(double x) { return (x + SHIFT) - SHIFT; }

/* The exact sum of a and b. */
static inline pair sum_of(double a, double b) {
    const double s = a + b, more = s - a;
    return (pair){s, (a - (s - more)) + (b - more)};
}

/* The exact product (Dekker 1971), for factors below 2^990. */
static inline pair product_of(double a, double b) {
    const double a_cut = a * 0x1.0000002p27, b_cut = b * 0x1.0000002p27;
    const double a_hi = a_cut - (a_cut - a), b_hi = b_cut - (b_cut - b), a_lo = a - a_hi, b_lo = b - b_hi, p = a * b;
    return (pair){p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo};
}

/* A series in x: c[0] is the coefficient of the highest power. Unrolled, as n is a constant. */
static inline __attribute__((always_inline)) double series(double x, const double *c, int n) {
    double sum = c[0];
#pragma GCC unroll 16
    for (int i = 1; i < n; i++) sum = sum * x + c[i];
    return sum;
}
#define SERIES(x, ...) series(x, (const double[]){__VA_ARGS__}, sizeof (double[]){__VA_ARGS__} / sizeof(double))

/* --- exponentials ------------------------------------------------------------------------------------------------- */

/* 2^n, n whole, -1022 .. 1023. */
static inline double two_to(double n) { return of_bits((bits_of(n + SHIFT) + 1023) << 52); }

/* exp(x) = 2^n (1 + hi + lo), |hi| < 0.35 exact, |lo| < 0.07, for |x.hi| < 1100. */
static inline pair exp_parts(pair x, double *n) {
    *n = whole(x.hi * 0x1.71547652b82fep+0);
    const double a = x.hi - *n * LN2_HI, b = x.lo - *n * LN2_LO, r = a + b;
    const double q = SERIES(r, 1.0 / 87178291200, 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                            1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2);
    return (pair){a, b + r * r * q};
}

/* From -746 down this is 0, from 710 up Inf; NaN passes. */
static inline double exp_of(pair x) {
    x.hi = x.hi < -746.0 ? -746.0 : x.hi;
    x.hi = x.hi > 710.0 ? 710.0 : x.hi;
    double n;
    const pair s = exp_parts(x, &n);
    const double sum = 1.0 + s.hi, half = whole(n * 0.5); /* 2^n in two factors: its exponent may have no room */
    return (sum + ((1.0 - sum + s.hi) + s.lo)) * two_to(half) * two_to(n - half);
}

/* E / (E + 2), E = exp(2 |x|) - 1. */
static inline double tanh_of(double x) {
    double n, size = fabs(x);
    size = size > 22.0 ? 22.0 : size;
    const pair s = exp_parts((pair){2.0 * size, 0.0}, &n);
    const double power = two_to(n), most = power - 1.0, part = s.hi + s.lo, part_lo = s.hi - part + s.lo;
    const double e = most + power * part, e_lo = (most - e + power * part) + power * part_lo;
    const pair d = sum_of(e, 2.0);
    const double q = e / d.hi;
    return copysign(q + (e_lo - q * (d.lo + e_lo)) / d.hi, x);
}

/* --- logarithms --------------------------------------------------------------------------------------------------- */

/* log(x) to 2^-64 of it, x positive and finite. x = 2^e m, and z = m / c - 1 for the c of m's interval, as a number of
 * few bits and a small rest: the large parts of e ln2 + log c + z - z^2 / 2 are then exact, and so are their sums. */
static inline pair log_of_pair(double x) {
    int64_t e = 0;
    if (x < 0x1p-1022) x *= 0x1p54, e = -54;
    const uint64_t u = bits_of(x), interval = u >> 46 & 63, m = (u & 0xfffffffffffff) | (uint64_t)1023 << 52;
    e += (int64_t)(u >> 52) - 1023 + (interval >= 27);
    const double *of = logarithms[interval], top = of_bits((m + 0x8000000) & ~(uint64_t)0xfffffff);
    const double z_hi = top * of[0] - 1.0, z_lo = (of_bits(m) - top) * of[0], z = z_hi + z_lo;
    const double square = 0.5 * z_hi * z_hi, sum = (double)e * LN2_HI + of[1] + z_hi; /* exact, like z_hi and z_lo */
    const double s = sum + z_lo, s_lo = (sum - s) + z_lo, t = s - square, t_lo = (s - t) - square;
    const double p = SERIES(z, 1.0 / 11, -1.0 / 10, 1.0 / 9, -1.0 / 8, 1.0 / 7, -1.0 / 6, 1.0 / 5, -1.0 / 4, 1.0 / 3);
    const double rest = (((double)e * LN2_LO + of[2]) + s_lo + t_lo - z_lo * (z_hi + 0.5 * z_lo)) + z * z * z * p;
    const double hi = t + rest;
    return (pair){hi, (t - hi) + rest};
}

static inline double log_of(double x) {
    if (x > 0 && x < INFINITY) return log_of_pair(x).hi;
    return x == 0 ? -INFINITY : x > 0 ? x : NAN;
}

/* y log x, x not negative: x^y is its exponential. */
static inline pair power_log(double x, double y) {
    if (x == 1 || y == 0) return (pair){0.0, 0.0};
    const pair log_x = x > 0 && x < INFINITY ? log_of_pair(x) : (pair){log_of(x), 0.0};
    const double size = y * log_x.hi;
    if (!(fabs(size) < 800)) return (pair){size, 0.0}; /* past float64's ends, or NaN */
    const pair p = product_of(y, log_x.hi);
    return (pair){p.hi, p.lo + y * log_x.lo};
}

/* --- angles ------------------------------------------------------------------------------------------------------- */

/* |x| >= 2^20, finite: x = m 2^e, and of 2 / pi the 192 bits from the first on whose product with x is no multiple of
 * four quarter turns (Payne, Hanek 1983). */
static pair reduce_large(double x, uint64_t *quarter) {
    static const uint64_t words[] = {/* of 2 / pi; the first stands before the point */
                                     0,
                                     0xa2f9836e4e441529,
                                     0xfc2757d1f534ddc0,
                                     0xdb6295993c439041,
                                     0xfe5163abdebbc561,
                                     0xb7246e3a424dd2e0,
                                     0x06492eea09d1921c,
                                     0xfe1deb1cb129a73e,
                                     0xe88235f52ebb4484,
                                     0xe99c7026b45f7e41,
                                     0x3991d639835339f4,
                                     0x9c845f8bbdf9283b,
                                     0x1ff897ffde05980f,
                                     0xef2f118b5a0a6d1f,
                                     0x6d367ecf27cb09b7,
                                     0x4f463f669e5fea2d,
                                     0x7527bac7ebe5f17b,
                                     0x3d0739f78a5292ea,
                                     0x6bfb5fb11f8d5d08,
                                     0x56033046fc7b6bab,
                                     0xf0cfbc209af4361d};
    const uint64_t u = bits_of(x), m = (u & 0xfffffffffffff) | (uint64_t)1 << 52;
    const uint64_t first = (u >> 52 & 2047) - 1023 - 52 - 2 + 64;
    const uint64_t *from = words + first / 64, shift = first % 64;
    uint64_t part[3];
    for (int i = 0; i < 3; i++) part[i] = shift ? from[i] << shift | from[i + 1] >> (64 - shift) : from[i];
    const u128 last = (u128)m * part[2], middle = (u128)m * part[1] + (last >> 64);
    const u128 turns = ((u128)(m * part[0]) << 64) + middle; /* two bits of quarters, then a fraction */
    const __int128 fraction = (__int128)(turns << 2 | (uint64_t)last >> 62);
    *quarter = (uint64_t)(turns >> 126) + (fraction < 0);
    const double hi = (double)fraction, lo = (double)(fraction - (__int128)hi);
    const pair r = product_of(hi * 0x1p-128, PI_2_HI);
    const pair sum = sum_of(r.hi, r.lo + hi * 0x1p-128 * PI_2_LO + lo * 0x1p-128 * PI_2_HI);
    return (pair){x < 0 ? -sum.hi : sum.hi, x < 0 ? -sum.lo : sum.lo};
}

/* x = r + *quarter pi / 2, |r| <= pi / 4. pi / 2 is cut into parts of 33 bits, whose products with numbers below 2^20
 * are exact. */
static inline pair reduce(double x, uint64_t *quarter) {
    if (!(fabs(x) < 0x1p20)) {
        const pair r = reduce_large(x, quarter);
        if (x < 0) *quarter = -*quarter;
        return r;
    }
    const double n = whole(x * 0x1.45f306dc9c883p-1);
    *quarter = bits_of(n + SHIFT);
    const pair b = sum_of(x - n * 0x1.921fb544p+0, -(n * 0x1.0b4611a6p-34));
    const pair c = sum_of(b.hi, -(n * 0x1.3198a2ep-69));
    const double low = b.lo + c.lo - n * 0x1.b839a252049c1p-104, r = c.hi + low;
    return (pair){r, (c.hi - r) + low};
}

static inline double sin_near(pair r) {
    const double z = r.hi * r.hi;
    const double p = SERIES(z, 1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
                            1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6);
    return r.hi + (z * r.hi * p + r.lo * (1.0 - 0.5 * z));
}

static inline double cos_near(pair r) {
    const double z = r.hi * r.hi, half = 0.5 * z, main = 1.0 - half;
    const double p = SERIES(z, -1.0 / 6402373705728000, 1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600,
                            -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24);
    return main + (((1.0 - main) - half) + (z * z * p - r.hi * r.lo));
}

/* sin(x + turned pi / 2) */
static inline double turned_sin(double x, uint64_t turned) {
    if (!(fabs(x) < INFINITY)) return NAN;
    if (x == 0 && !turned) return x; /* -0 stays */
    uint64_t quarter;
    const pair r = reduce(x, &quarter);
    quarter += turned;
    const double y = quarter & 1 ? cos_near(r) : sin_near(r);
    return quarter & 2 ? -y : y;
}

/* --- arrays ------------------------------------------------------------------------------------------------------- */

static void powers(const double *x, const double *y, int64_t n, double *out) {
    pair logs[CQ_ELEMENTARY_SPAN];
    for (int64_t i = 0; i < n; i++) logs[i] = power_log(x[i], y[i]);
    for (int64_t i = 0; i < n; i++) out[i] = exp_of(logs[i]);
}

/* x (n) to out; a power's y is the job's, from `at` on. */
static void compute(const cq_pass_job *job, const double *x, int64_t at, int64_t n, double *out) {
    switch ((cq_function)job->kind) {
    case CQ_EXP:
        for (int64_t i = 0; i < n; i++) out[i] = exp_of((pair){x[i], 0.0});
        break;
    case CQ_LOG:
        for (int64_t i = 0; i < n; i++) out[i] = log_of(x[i]);
        break;
    case CQ_SIN:
        for (int64_t i = 0; i < n; i++) out[i] = turned_sin(x[i], 0);
        break;
    case CQ_COS:
        for (int64_t i = 0; i < n; i++) out[i] = turned_sin(x[i], 1);
        break;
    case CQ_TANH:
        for (int64_t i = 0; i < n; i++) out[i] = tanh_of(x[i]);
        break;
    case CQ_POWER: powers(x, (const double *)job->arrays[1] + at, n, out); break;
    }
}

static void *result_of(const cq_pass_job *job) { return job->arrays[job->kind == CQ_POWER ? 2 : 1]; }

void cq_elementary_f64(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const double *x = job->arrays[0];
    double *out = result_of(job);
    EACH_SPAN(at, size) compute(job, x + at, at, size, out + at);
}

void cq_elementary_f32(void *context, cq_queue *queue) {
    const cq_pass_job *job = context;
    const float *x = job->arrays[0];
    float *out = result_of(job);
    double wide[CQ_ELEMENTARY_SPAN];
    EACH_SPAN(at, size) {
        for (int64_t i = 0; i < size; i++) wide[i] = x[at + i];
        compute(job, wide, at, size, wide);
        for (int64_t i = 0; i < size; i++) out[at + i] = (float)wide[i];
    }
}
