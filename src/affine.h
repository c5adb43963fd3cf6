/* The affine map's parameters from a range, found at inference: float32, step by step as ONNX DynamicQuantizeLinear.
 * Shared by all kernels, so that every instruction set rounds alike. */
#ifndef CQ_AFFINE_H
#define CQ_AFFINE_H
#include <float.h>
#include <math.h>
#include <stdint.h>

static inline void cq_code_range(int is_signed, int symmetric, float *qmin, float *qmax) {
    *qmin = is_signed ? (symmetric ? -127.0f : -128.0f) : 0.0f;
    *qmax = is_signed ? 127.0f : 255.0f;
}

/* What to multiply by instead of dividing by `scale`; NaN, which sends kernels to the division, where it would be
 * denormal. */
static inline float cq_inverse(float scale) { return scale > 0x1p126f ? NAN : 1.0f / scale; }

static inline void cq_row_params(float lo, float hi, int is_signed, int symmetric, float *scale, int32_t *zero_point) {
    lo = lo < 0.0f ? lo : 0.0f;
    hi = hi > 0.0f ? hi : 0.0f;
    *scale = 1.0f;
    *zero_point = 0;
    if (lo == hi) return;
    if (symmetric) {
        const float s = (hi > -lo ? hi : -lo) / 127.0f;
        *scale = s < FLT_MIN ? FLT_MIN : s;
        return;
    }
    float s = (hi - lo) / 255.0f;
    if (s > FLT_MAX) s = hi / 255.0f - lo / 255.0f; /* the range overflowed, its 255th does not */
    if (s < FLT_MIN) s = FLT_MIN;
    const float qmin = is_signed ? -128.0f : 0.0f, qmax = is_signed ? 127.0f : 255.0f;
    float z = qmin - lo / s;
    z = z < qmin ? qmin : z > qmax ? qmax : z;
    *scale = s;
    *zero_point = (int32_t)rintf(z);
}
#endif
