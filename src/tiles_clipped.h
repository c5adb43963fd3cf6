/* Integer products by vpmaddubsw, which multiplies bytes, unsigned by signed, and adds two products in int16, where
 * they may saturate. Included by kernel_avx2.c and kernel_avx512bw.c; clip.h makes the rows.
 *
 * A row of codes is centred, x = a - c, and clipped, x = y + e: of four y whose products are added in int16, the
 * positive ones are at most 127 together, and so are the negative ones. A weight counts as w + 128 <= 255: nothing can
 * saturate. The excess e is a list for each row, short where codes lie around the centre, as real ones do around their
 * zero point. Its products are added exactly as well:
 *
 *     sum x w  =  sum y (w + 128) - 128 sum y + sum e w
 *
 * Where most codes lie above a floor and not far from it, as those of an activation function do, y counts from there,
 * four y >= 0 are at most 255 together, and weights count as they are: sum x w = sum y w + sum e w.
 *
 * K is cut into pieces, and a piece into halves. Group i of the first half and group i of the second are added. */
#include "tiles.h"

enum { PIECE_GROUPS = 256 }; /* groups of a piece: so much of a panel stays in the first-level cache */

static int64_t piece_of(int64_t groups) {
    const int64_t pieces = (groups + PIECE_GROUPS - 1) / PIECE_GROUPS;
    return pieces ? ((groups + pieces - 1) / pieces + 1) / 2 * 2 : 0;
}

/* A vector holds a panel's line, or half of it. A tile is two of them wide. From RAISE_FROM rows on, weights + 128 are
 * laid down before tiles read them: where additions take turns on the multipliers' ports, as on Intel, an exclusive or
 * for every vector of every tile is 9 % of the work. FULL_FROM: rows whose sums leave no register for constants.
 * EXCESS_SHARE and EXCESS_SHARE_FEW: see kernel.h. */
#ifdef __AVX512BW__
typedef __m512i line_part;
#define OP(name) _mm512_##name
#define REGISTER "v"
/* A loop's constants: GCC would keep them in vector registers, and a move from there delays a multiplication. */
#define IN_MEMORY volatile
enum { MOST_ROWS = 8, RAISE_FROM = 96, FULL_FROM = 9, EXCESS_SHARE = 5, EXCESS_SHARE_FEW = 4 };
#else
typedef __m256i line_part;
#define OP(name) _mm256_##name
#define REGISTER "x"
#define IN_MEMORY
enum { MOST_ROWS = 4, RAISE_FROM = 24, FULL_FROM = 4, EXCESS_SHARE = 9, EXCESS_SHARE_FEW = 7 };
#endif
enum { LANES = sizeof(line_part) / 4, AT_ONCE = 2 * LANES / CQ_PANEL }; /* panels of a tile */

/* Weights that came from elsewhere, and results, may lie anyhow. */
typedef line_part loose_part __attribute__((aligned(1)));
INLINE line_part load_part(const void *p) { return *(const line_part *)p; }
INLINE line_part load_sums(const int32_t *p) { return *(const loose_part *)(const void *)p; }
INLINE line_part load_weights(const int8_t *b) { return *(const loose_part *)b; }
INLINE void store_sums(int32_t *p, line_part x) { *(loose_part *)(void *)p = x; }
INLINE line_part four_codes(const int8_t *a) {
    int32_t x;
    memcpy(&x, a, 4);
    return OP(set1_epi32)(x);
}
static const struct {
    _Alignas(64) int16_t ones[32];
    uint64_t high_bits[8];
} in_memory = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
               {0x8080808080808080, 0x8080808080808080, 0x8080808080808080, 0x8080808080808080, 0x8080808080808080,
                0x8080808080808080, 0x8080808080808080, 0x8080808080808080}};
#define ONES (*(const line_part *)in_memory.ones)
#define HIGH_BITS (*(const line_part *)in_memory.high_bits)

/* What tiles make of weights: w + 128, by themselves or laid down before, or w for unsigned codes. */
enum { RAISE, RAISED, UNRAISED };

INLINE line_part weights(const int as, const int full, const int8_t *b) {
    if (as == RAISED) return load_part(b);
    if (as == UNRAISED) return load_weights(b);
    if (!full) return HIGH_BITS ^ load_weights(b);
    line_part u;
    __asm__("vmovdqa %1, %0\n\tvpxor %2, %0, %0" : "=x"(u) : "m"(HIGH_BITS), "m"(*(const loose_part *)b));
    return u;
}

/* sum += times (u1 s1 + u2 s2), u unsigned and s signed; `s` and `t` say whether s and times are in a REGISTER or
 * in memory ("m"). Assembly, because GCC reassociates the sums and spills some of them. */
#define ADD_FOUR(sum, u1, s1, u2, s2, times, s, t) { \
    line_part p, q; \
    __asm__("vpmaddubsw %3, %2, %0\n\tvpmaddubsw %5, %4, %1\n\tvpaddw %1, %0, %0\n\tvpmaddwd %6, %0, %0" \
            : "=&" REGISTER(p), "=&" REGISTER(q) : REGISTER(u1), s(s1), REGISTER(u2), s(s2), t(times)); \
    __asm__("vpaddd %1, %0, %0" : "+" REGISTER(sum) : REGISTER(p)); }

#define FETCH_AT(p) __builtin_prefetch((p) + 64 * FETCH_GROUPS, 0, 2)

/* A piece of a panel, or of two, times rows of a: acc (rows, columns) = start (columns) - raising (rows), or what acc
 * held, + a (rows, groups) x b. */
typedef struct {
    const int32_t *start, *raising; /* start: NULL but for the first piece */
    const int8_t *a;
    int64_t a_stride;
    const int8_t *b; /* weights, or weights + 128 */
    int64_t b_step;  /* from a panel to the second one, where a tile is two wide */
    int64_t groups;
    int32_t *acc;
    int64_t acc_stride;
    const int8_t *next; /* the next panel: next_step bytes of it are a tile's share with every two groups */
    int64_t next_step, panel_stride;
} clipped_product;

/* What a tile brings into the second-level cache: its own weight, where it is the only one that reads it, or its share
 * of the next panel. */
enum { FETCH_OWN, FETCH_NEXT };

/* Rows row .. row + R - 1. The sums of a line's two vectors are c and d. */
INLINE void tile_clipped(const int R, const int fetch, const int as, const clipped_product *o, int64_t row) {
    const int full = R >= FULL_FROM;
    const int64_t half = (o->groups + 1) / 2, a_stride = o->a_stride;
    const int64_t step = AT_ONCE == 1 ? (int64_t)sizeof(line_part) : o->b_step;
    const int8_t *a = o->a + row * a_stride, *a2 = a + 4 * half;
    const int8_t *const IN_MEMORY end = a + 4 * (o->groups - half);
    const IN_MEMORY int64_t next_step = o->next_step, panel_stride = o->panel_stride;
    const int8_t *b = o->b, *b2 = b + 64 * half;
    const int64_t acc_stride = o->acc_stride;
    int32_t *const acc = o->acc + row * acc_stride;
    const int8_t *ahead = o->next + row / MOST_ROWS * (next_step * half);
#define EIGHT_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define LET(r) line_part c##r = ONES, d##r = ONES;
#define BEGIN(r) \
    if (R > r) { \
        c##r = load_part(o->start), d##r = load_part(o->start + LANES); \
        if (as != UNRAISED) { \
            const line_part raising = OP(set1_epi32)(o->raising[row + r]); \
            c##r = OP(sub_epi32)(c##r, raising), d##r = OP(sub_epi32)(d##r, raising); \
        } \
    }
#define GET(r) \
    if (R > r) c##r = load_sums(acc + r * acc_stride), d##r = load_sums(acc + r * acc_stride + LANES);
    EIGHT_ROWS(LET)
    if (o->start) {
        EIGHT_ROWS(BEGIN)
    } else {
        EIGHT_ROWS(GET)
    }
    for (; a < end; a += 4, a2 += 4, b += 64, b2 += 64) {
        const line_part lo = weights(as, full, b), hi = weights(as, full, b + step);
        const line_part lo2 = weights(as, full, b2), hi2 = weights(as, full, b2 + step);
        if (fetch == FETCH_OWN) {
            FETCH_AT(b), FETCH_AT(b2);
            if (AT_ONCE > 1) FETCH_AT(b + step), FETCH_AT(b2 + step);
        } else {
            __builtin_prefetch(ahead, 0, 2);
            if (AT_ONCE > 1) __builtin_prefetch(ahead + panel_stride, 0, 2);
            ahead += next_step;
        }
#define ADD(sum, w, w2) { \
    if (as == UNRAISED && full) ADD_FOUR(sum, x, w, y, w2, ONES, REGISTER, "m") \
    else if (as == UNRAISED) ADD_FOUR(sum, x, w, y, w2, ONES, REGISTER, REGISTER) \
    else if (full) ADD_FOUR(sum, w, x, w2, y, ONES, REGISTER, "m") \
    else ADD_FOUR(sum, w, x, w2, y, ONES, REGISTER, REGISTER) }
#define ADD_TWO_GROUPS(r) \
    if (R > r) { \
        const line_part x = four_codes(a + r * a_stride), y = four_codes(a2 + r * a_stride); \
        ADD(c##r, lo, lo2) \
        ADD(d##r, hi, hi2) \
    }
        EIGHT_ROWS(ADD_TWO_GROUPS)
    }
    if (o->groups % 2) {
        const line_part lo = weights(as, full, b), hi = weights(as, full, b + step);
#define PRODUCTS(w, x) (as == UNRAISED ? OP(maddubs_epi16)(x, w) : OP(maddubs_epi16)(w, x))
#define ADD_LAST_GROUP(r) \
    if (R > r) { \
        const line_part x = four_codes(a + r * a_stride); \
        c##r = OP(add_epi32)(c##r, OP(madd_epi16)(PRODUCTS(lo, x), ONES)); \
        d##r = OP(add_epi32)(d##r, OP(madd_epi16)(PRODUCTS(hi, x), ONES)); \
    }
        EIGHT_ROWS(ADD_LAST_GROUP)
    }
#define PUT(r) \
    if (R > r) store_sums(acc + r * acc_stride, c##r), store_sums(acc + r * acc_stride + LANES, d##r);
    EIGHT_ROWS(PUT)
#undef PUT
#undef ADD_LAST_GROUP
#undef PRODUCTS
#undef ADD_TWO_GROUPS
#undef ADD
#undef GET
#undef BEGIN
#undef LET
#undef EIGHT_ROWS
}

#define TILES(fetch, as) \
    int64_t row = 0; \
    if (MOST_ROWS == 8 && fetch != FETCH_OWN) \
        for (; row + 8 <= rows; row += 8) tile_clipped(8, fetch, as, o, row); \
    for (; row + 4 <= rows; row += 4) tile_clipped(4, fetch, as, o, row); \
    switch (rows - row) { \
    case 1: tile_clipped(1, fetch, as, o, row); break; \
    case 2: tile_clipped(2, fetch, as, o, row); break; \
    case 3: tile_clipped(3, fetch, as, o, row); \
    }
static void tiles_of_few(int64_t rows, const clipped_product *o) { TILES(FETCH_OWN, RAISE) }
static void tiles_of_some(int64_t rows, const clipped_product *o) { TILES(FETCH_NEXT, RAISE) }
static void tiles_of_many(int64_t rows, const clipped_product *o) { TILES(FETCH_NEXT, RAISED) }
static void unsigned_tiles_of_few(int64_t rows, const clipped_product *o) { TILES(FETCH_OWN, UNRAISED) }
static void unsigned_tiles_of_some(int64_t rows, const clipped_product *o) { TILES(FETCH_NEXT, UNRAISED) }
#undef TILES

/* An even number of groups of excess, to add or to subtract. */
typedef struct {
    const int32_t *groups, *codes, *end; /* end: of codes */
} excess_span;

static excess_span span_of(const cq_excess *e, int64_t row) {
    const int64_t start = row ? e->ends[row - 1] : 0;
    return (excess_span){e->groups + start, e->codes + start, e->codes + e->ends[row]};
}

/* acc (16 P) += a row's excess x P panels. */
INLINE void add_excess(const int P, excess_span added, excess_span subtracted, const int8_t *b, int64_t panel_stride,
                       int32_t *acc) {
#define EACH_HALF(X) X(0, 0) X(0, 1) X(1, 0) X(1, 1) X(2, 0) X(2, 1) X(3, 0) X(3, 1)
#define IS_THERE(p, h) (P > p && (h == 0 || LANES < CQ_PANEL))
#define GET(p, h) line_part c##p##h = IS_THERE(p, h) ? load_sums(acc + CQ_PANEL * p + LANES * h) : ONES;
    EACH_HALF(GET)
#define LINE(b, p, h) *(const loose_part *)(b + p * panel_stride + 4 * LANES * h)
#define ADD(p, h) if (IS_THERE(p, h)) ADD_FOUR(c##p##h, x, LINE(b1, p, h), y, LINE(b2, p, h), sign, "m", REGISTER)
#define ADD_SPAN(span, times) { \
        const line_part sign = times; \
        for (const int32_t *e = span.codes, *g = span.groups; e < span.end; e += 2, g += 2) { \
            const line_part x = OP(set1_epi32)(e[0]), y = OP(set1_epi32)(e[1]); \
            const int8_t *b1 = b + 64 * (int64_t)g[0], *b2 = b + 64 * (int64_t)g[1]; \
            EACH_HALF(ADD) \
        } }
    ADD_SPAN(added, OP(set1_epi16)(1))
    ADD_SPAN(subtracted, OP(set1_epi16)(-1))
#define PUT(p, h) if (IS_THERE(p, h)) store_sums(acc + CQ_PANEL * p + LANES * h, c##p##h);
    EACH_HALF(PUT)
#undef PUT
#undef ADD_SPAN
#undef ADD
#undef LINE
#undef GET
#undef IS_THERE
#undef EACH_HALF
}

static void raise_lines(const int8_t *b, int64_t lines, int8_t *to) {
    for (int64_t i = 0; i < 64 * lines; i += (int64_t)sizeof(line_part))
        *(line_part *)(void *)(to + i) = HIGH_BITS ^ load_weights(b + i);
}

static void ISA(strip_clipped)(const cq_clipped *a, const int8_t *b, int64_t panel_stride, int64_t groups,
                               const cq_strip *s) {
    _Alignas(64) int32_t scratch[CQ_BLOCK_ROWS * CQ_TILE];
    _Alignas(64) int8_t lines[AT_ONCE][64 * PIECE_GROUPS];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL, is_raised = !a->is_unsigned && s->rows >= RAISE_FROM;
    const int64_t piece = piece_of(groups);
    const int bare = s->c && !s->row_sums && s->columns == CQ_TILE; /* sums are written where they belong */
    int32_t *const acc = bare ? s->c : scratch;
    const int64_t acc_stride = bare ? s->stride : CQ_TILE;
    for (int64_t g = 0; g < groups; g += piece)
        for (int p = 0; p < panels; p += AT_ONCE) { /* where two go at once, the last of an odd number goes twice */
            const int8_t *here = b + p * panel_stride + 64 * g;
            const int both = AT_ONCE > 1 && p + 1 < panels;
            clipped_product o = {.start = g ? NULL : s->start + p * CQ_PANEL,
                                 .raising = a->raising,
                                 .a = a->codes + 4 * g,
                                 .a_stride = a->stride,
                                 .b = here,
                                 .b_step = both ? panel_stride : 0,
                                 .groups = groups - g < piece ? groups - g : piece,
                                 .acc = acc + p * CQ_PANEL,
                                 .acc_stride = acc_stride,
                                 .next = p + AT_ONCE < panels ? here + AT_ONCE * panel_stride
                                         : g + piece < groups ? b + 64 * (g + piece)
                                                              : b + panels * panel_stride,
                                 .next_step = 128 / ((s->rows + MOST_ROWS - 1) / MOST_ROWS),
                                 .panel_stride = panel_stride};
            if (is_raised) {
                raise_lines(here, o.groups, lines[0]);
                if (both) raise_lines(here + panel_stride, o.groups, lines[AT_ONCE - 1]), o.b_step = sizeof lines[0];
                o.b = lines[0];
            }
            if (a->is_unsigned) {
                if (s->rows <= FETCH_ROWS) unsigned_tiles_of_few(s->rows, &o);
                else unsigned_tiles_of_some(s->rows, &o);
            } else if (s->rows <= FETCH_ROWS) {
                tiles_of_few(s->rows, &o);
            } else if (is_raised) {
                tiles_of_many(s->rows, &o);
            } else {
                tiles_of_some(s->rows, &o);
            }
        }
    for (int64_t r = 0; r < s->rows; r++) {
        const excess_span added = span_of(&a->added, r), subtracted = span_of(&a->subtracted, r);
        if (added.codes == added.end && subtracted.codes == subtracted.end) continue;
        if (panels == CQ_TILE / CQ_PANEL) add_excess(4, added, subtracted, b, panel_stride, acc + r * acc_stride);
        else
            for (int p = 0; p < panels; p++)
                add_excess(1, added, subtracted, b + p * panel_stride, 0, acc + r * acc_stride + p * CQ_PANEL);
    }
    if (!bare) ISA(store_i8)(acc, CQ_TILE, (int)s->rows, s, 0);
}

static double ISA(peak_i8)(int64_t repeats) {
    line_part x = ONES;
#define EIGHT_SUMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define ZERO(i) line_part c##i = {0};
#define OPAQUE_X __asm__ volatile("" : "+" REGISTER(x)); /* or the compiler would see equal sums and make one */
#define ADD(i) OPAQUE_X ADD_FOUR(c##i, x, x, x, x, x, REGISTER, REGISTER)
#define USED(i) __asm__ volatile("" : : REGISTER(c##i));
    EIGHT_SUMS(ZERO)
    for (int64_t n = 0; n < repeats * 1024; n++) { EIGHT_SUMS(ADD) }
    EIGHT_SUMS(USED)
#undef USED
#undef ADD
#undef OPAQUE_X
#undef ZERO
#undef EIGHT_SUMS
    return (double)repeats * 1024 * 8 * LANES * 8 * 2;
}
