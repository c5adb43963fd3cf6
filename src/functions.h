/* Functions of a real variable over 16 lanes: the same polynomials on every instruction set. A part of rows.h. */

/* exp(x), x clamped to [-87.33, 89], Inf from 88.73: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2], relative error
 * 1e-7. NaN passes: minimum and maximum return their second operand where either is NaN. */
BULKY f32x16 lanes_exp(f32x16 x) {
    x = f32_max(f32_set(-87.33f), f32_min(f32_set(89.0f), x));
    const f32x16 n = f32_round(f32_mul(x, f32_set(1.44269504f)));
    f32x16 r = f32_fma(n, f32_set(-0.693145752f), x); /* ln2 in two parts: the first has 15 trailing zero bits */
    r = f32_fma(n, f32_set(-1.42860677e-6f), r);
    f32x16 p = f32_set(0.0013814596459269524f);
    p = f32_fma(p, r, f32_set(0.0083687175065279f));
    p = f32_fma(p, r, f32_set(0.04166838899254799f));
    p = f32_fma(p, r, f32_set(0.1666652113199234f));
    p = f32_fma(p, r, f32_set(0.4999999403953552f));
    p = f32_fma(f32_mul(r, r), p, f32_add(r, f32_set(1.0f)));
    /* 2^n in two factors, as n = 128 has no exponent of its own */
    const i32x16 e = i32_from_f32(n), half = i32_sar(e, 1);
    const f32x16 a = f32_bits(i32_shl(i32_add(half, i32_set(127)), 23));
    const f32x16 b = f32_bits(i32_shl(i32_add(i32_sub(e, half), i32_set(127)), 23));
    return f32_mul(f32_mul(p, a), b);
}

/* x / (1 + exp(-x)) */
BULKY f32x16 lanes_silu(f32x16 x) { return f32_div(x, f32_add(f32_set(1.0f), lanes_exp(f32_sub(f32_set(0.0f), x)))); }

/* x Phi(x) = max(0, x) - g(|x|), g(a) = a Phi(-a): in 15 pieces around n * 0.37 a polynomial of degree 4 in a - n *
 * 0.37, fitted at Chebyshev nodes, from 5.37 on 0; absolute error 3.5e-7. Inf times the last piece's zeros is NaN, so
 * that Inf stays visible. */
BULKY f32x16 lanes_gelu(f32x16 x) {
    static const float c[5][16] = {
        {0.0f, 0.131605759f, 0.169941008f, 0.148184463f, 0.102766208f, 0.0594900362f, 0.0293248296f, 0.0124288807f,
         0.00455305679f, 0.00144598552f, 0.000398859207f, 9.56719086e-05f, 1.99709593e-05f, 3.62990659e-06f,
         5.7469407e-07f, 0.0f},
        {0.5f, 0.21785526f, 0.00515028508f, -0.105654702f, -0.12804839f, -0.101166442f, -0.0621418431f, -0.0313071534f,
         -0.0132408664f, -0.00475861551f, -0.001463625f, -0.000387014763f, -8.82460517e-05f, -1.73885564e-05f,
         -2.96558846e-06f, 0.0f},
        {-0.398947984f, -0.347043544f, -0.220322743f, -0.0827295482f, 0.0126997f, 0.0512555242f, 0.049697157f,
         0.0328167938f, 0.0168805737f, 0.00708716316f, 0.0024827458f, 0.000734702975f, 0.000185064739f, 3.98819066e-05f,
         7.37939672e-06f, 0.0f},
        {0.000147982966f, 0.0879430398f, 0.12820369f, 0.109819964f, 0.0596503243f, 0.0132068833f, -0.0113393748f,
         -0.0161565896f, -0.0117195286f, -0.00617046654f, -0.00256894459f, -0.000876150734f, -0.000249346136f,
         -5.98703155e-05f, -1.22159754e-05f, 0.0f},
        {0.0655232593f, 0.0472073331f, 0.00601264229f, -0.0275469068f, -0.0360725112f, -0.0247063804f, -0.00886708591f,
         0.00109285221f, 0.00399786886f, 0.0031997601f, 0.00169921177f, 0.000689977431f, 0.000225375916f,
         6.07057264e-05f, 1.3677567e-05f, 0.0f},
    };
    const f32x16 a = f32_abs(x),
                 shift = f32_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    const f32x16 at = f32_add(f32_min(f32_mul(a, f32_set(1.0f / 0.37f)), f32_set(15.0f)), shift);
    const i32x16 piece = i32_bits(at);
    const f32x16 d = f32_fma(f32_sub(at, shift), f32_set(-0.37f), a);
    f32x16 g = f32_pick(c[4], piece);
    for (int i = 3; i >= 0; i--) g = f32_fma(g, d, f32_pick(c[i], piece));
    return f32_sub(f32_max(f32_set(0.0f), x), g);
}

/* x (1 + tanh(u)) / 2 = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016) */
BULKY f32x16 lanes_gelu_tanh(f32x16 x) {
    const f32x16 inner = f32_fma(f32_mul(f32_mul(x, x), x), f32_set(0.044715f), x);
    const f32x16 e = lanes_exp(f32_mul(inner, f32_set(-1.59576912f)));
    return f32_div(x, f32_add(f32_set(1.0f), e));
}

BULKY f32x16 lanes_activate(const cq_activation activation, f32x16 x) {
    switch (activation) {
    case CQ_RELU: return f32_max(f32_set(0.0f), x); /* NaN stays NaN */
    case CQ_GELU: return lanes_gelu(x);
    case CQ_GELU_TANH: return lanes_gelu_tanh(x);
    case CQ_SILU: return lanes_silu(x);
    default: return x;
    }
}
