/* AMX: products of int8 in tiles of 16 rows by 16 columns. Only products of 8 rows and more are this file's; all else
 * is avx512vnni's. Cost a core: TDPBUSD, which multiplies 16 rows of 64 codes by 64 rows of a panel as they are packed,
 * 16 cycles; the load of a tile 8 from the first-level cache, if its rows begin with a cache line. */
#include <string.h>

#include "kernel.h"

enum {
    SIDE = 16,         /* rows of a tile, and int32 sums of a row */
    DEPTH = 64,        /* codes of a row that one instruction multiplies */
    TILE_BYTES = 1024, /* of a panel: DEPTH rows of SIDE columns */
    BLOCK = 2 * SIDE,  /* rows, and columns, of the sums that are in tiles at a time */
    PANELS = CQ_TILE / CQ_PANEL,
    AT_ONCE = 8, /* steps: what they read of 32 rows and 64 columns stays in the first-level cache */
    FEWEST = 8,  /* rows; fewer wait for their weight anyway */
    LONG = 56    /* steps; from so many on the second-level cache soon has no room for the next strip */
};

/* What LDTILECFG reads: rows and bytes of a row of each tile. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 to 3 hold sums: upper left, upper right, lower left, lower right. 4 and 5 hold rows of A, upper and lower, 6
 * and 7 panels, left and right. */
#define LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define MULTIPLY(sums, rows, panel) __asm__ volatile("tdpbusd %%tmm" #panel ", %%tmm" #rows ", %%tmm" #sums : :)

/* Tiles for `rows` rows: as many above as below, or one more. */
static inline void shape_tiles(int rows) {
    tile_shapes shapes = {.palette = 1};
    const int lower = rows > SIDE ? rows / 2 : 0;
    for (int i = 0; i < 8; i++) {
        const int low = i == 2 || i == 3 || i == 5;
        shapes.row_bytes[i] = DEPTH, shapes.rows[i] = (uint8_t)(i > 5 ? SIDE : low ? lower : rows - lower);
        if (!shapes.rows[i]) shapes.row_bytes[i] = 0;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

/* A library may shape a thread's tiles once and rely on that from then on: they are left as they were. */
static inline tile_shapes shapes_before(void) {
    tile_shapes shapes;
    __asm__ volatile("sttilecfg %0" : "=m"(shapes));
    return shapes;
}
static inline void give_back(const tile_shapes *shapes) {
    if (shapes->palette) __asm__ volatile("ldtilecfg %0" : : "m"(*shapes));
    else __asm__ volatile("tilerelease" : :);
}

/* A product's operands as far as they make whole steps of DEPTH, and the rest, filled with zeros. */
typedef struct {
    const uint8_t *a;
    int64_t a_stride;
    const int8_t *b;
    int64_t panel_stride, steps;
    const uint8_t *a_rest;
    const int8_t *b_rest; /* or NULL */
    const int8_t *next;   /* what steps fetch into the second-level cache, so many lines each */
    int64_t lines;
    int is_near; /* steps fetch the panels of the one after the next into the first-level cache */
} operands;

/* acc (rows, 16 * panels) = start + rows x panels, of `upper` rows and, where there are lower tiles, those below. Rows
 * of `start` lie start_stride apart; 0: it is one. */
static inline __attribute__((always_inline)) void multiply(const int lower, const int right, int upper,
                                                           const operands *o, const int32_t *start,
                                                           int64_t start_stride, int32_t *acc, int64_t acc_stride) {
    LOAD(0, start, 4 * start_stride);
    if (right) LOAD(1, start + SIDE, 4 * start_stride);
    if (lower) LOAD(2, start + upper * start_stride, 4 * start_stride);
    if (lower && right) LOAD(3, start + upper * start_stride + SIDE, 4 * start_stride);
#define STEP(a, a_stride, b, panel_stride) \
    LOAD(6, b, DEPTH); \
    LOAD(4, a, a_stride); \
    MULTIPLY(0, 4, 6); \
    if (right) { LOAD(7, b + panel_stride, DEPTH); MULTIPLY(1, 4, 7); } \
    if (lower) { LOAD(5, a + upper * a_stride, a_stride); MULTIPLY(2, 5, 6); } \
    if (lower && right) MULTIPLY(3, 5, 7);
    const uint8_t *a = o->a;
    const int8_t *b = o->b;
    const int8_t *next = o->next;
    for (int64_t i = 0; i < o->steps; i++, a += DEPTH, b += TILE_BYTES) {
        for (int64_t j = 0; j < o->lines; j++, next += CQ_LINE) __builtin_prefetch(next, 0, 2);
        for (int j = 0; o->is_near && j < TILE_BYTES; j += CQ_LINE) {
            __builtin_prefetch(b + 2 * TILE_BYTES + j);
            if (right) __builtin_prefetch(b + o->panel_stride + 2 * TILE_BYTES + j);
        }
        STEP(a, o->a_stride, b, o->panel_stride)
    }
    if (o->b_rest) { STEP(o->a_rest, DEPTH, o->b_rest, TILE_BYTES) }
#undef STEP
    STORE(0, acc, 4 * acc_stride);
    if (right) STORE(1, acc + SIDE, 4 * acc_stride);
    if (lower) STORE(2, acc + upper * acc_stride, 4 * acc_stride);
    if (lower && right) STORE(3, acc + upper * acc_stride + SIDE, 4 * acc_stride);
}

static void strip_i8_amx(const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t panel_stride, int64_t groups,
                         const cq_strip *s) {
    if (s->rows < FEWEST) {
        cq_kernels_avx512vnni.strip_i8(a, a_stride, b, panel_stride, groups, s);
        return;
    }
    _Alignas(64) int32_t acc[BLOCK * CQ_TILE];
    _Alignas(64) uint8_t a_rest[BLOCK * DEPTH];
    _Alignas(64) int8_t b_rest[PANELS * TILE_BYTES];
    const int panels = (s->columns + CQ_PANEL - 1) / CQ_PANEL;
    const int64_t steps = groups / SIDE, rest = groups % SIDE * 4;
    if (rest) {
        memset(a_rest, 0, sizeof a_rest), memset(b_rest, 0, sizeof b_rest);
        for (int p = 0; p < panels; p++)
            memcpy(b_rest + p * TILE_BYTES, b + p * panel_stride + steps * TILE_BYTES, (size_t)rest * CQ_PANEL);
    }
    const int bare =
        s->c && s->columns == CQ_TILE && !s->row_zeros && !s->row_sums &&
        !(((uintptr_t)s->c | (uintptr_t)(4 * s->stride)) % CQ_LINE); /* sums that go out as they are, in whole lines */
    const int64_t sum_stride = bare ? s->stride : CQ_TILE;
    /* Of the next strip a share with every step of two panels, one of which has SIDE lines. */
    const int is_near = steps >= LONG;
    const int64_t lines = is_near || s->rows <= BLOCK ? 0 : (2 * SIDE * BLOCK + s->rows - 1) / s->rows;
    const tile_shapes before = shapes_before();
    const int8_t *next = b + panels * panel_stride;
    int shaped = 0, rows;
    for (int64_t row = 0; row < s->rows; row += rows) {
        rows = (int)(s->rows - row < BLOCK ? s->rows - row : BLOCK);
        if (rows != shaped) shape_tiles(shaped = rows);
        const int upper = rows > SIDE ? rows - rows / 2 : rows;
        int32_t *const sums = bare ? s->c + row * s->stride : acc;
        for (int64_t r = 0; rest && r < rows; r++)
            memcpy(a_rest + r * DEPTH, a + (row + r) * a_stride + steps * DEPTH, (size_t)rest);
        for (int64_t k = 0; k == 0 || k < steps; k += AT_ONCE) {
            const int last = k + AT_ONCE >= steps;
            operands o = {.a = a + row * a_stride + k * DEPTH,
                          .a_stride = a_stride,
                          .panel_stride = panel_stride,
                          .steps = last ? steps - k : AT_ONCE,
                          .a_rest = a_rest,
                          .lines = lines,
                          .is_near = is_near};
            for (int p = 0; p < panels; p += 2) {
                int32_t *to = sums + p * CQ_PANEL;
                const int32_t *start = k ? to : s->start + p * CQ_PANEL;
                const int64_t start_stride = k ? sum_stride : 0;
                o.next = next, next += o.steps * lines * CQ_LINE;
                o.b = b + p * panel_stride + k * TILE_BYTES, o.b_rest = rest && last ? b_rest + p * TILE_BYTES : NULL;
                if (rows > SIDE && panels - p > 1) multiply(1, 1, upper, &o, start, start_stride, to, sum_stride);
                else if (rows > SIDE) multiply(1, 0, upper, &o, start, start_stride, to, sum_stride);
                else if (panels - p > 1) multiply(0, 1, upper, &o, start, start_stride, to, sum_stride);
                else multiply(0, 0, upper, &o, start, start_stride, to, sum_stride);
            }
        }
        if (!bare) cq_kernels_avx512vnni.store_i8(acc, CQ_TILE, rows, s, row);
    }
    give_back(&before);
}

static double peak_i8_amx(int64_t repeats) {
    const tile_shapes before = shapes_before();
    shape_tiles(BLOCK);
    for (int64_t n = 0; n < repeats * 1024; n += 16) {
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
    }
    give_back(&before);
    return (double)repeats * 64 * 4 * SIDE * SIDE * DEPTH * 2;
}

void cq_products_amx(cq_kernels *to) {
    to->name = "amx", to->align_from = FEWEST, to->strip_i8 = strip_i8_amx, to->peak_i8 = peak_i8_amx;
}
