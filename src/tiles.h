/* What the micro-kernels of both kinds share: names of accumulators, and a constant shape for each case. A tile is up
 * to 6 rows x 4 panels of 16 columns, the whole K in named accumulators (an array of them would be spilled). */
#ifndef CQ_TILES_H
#define CQ_TILES_H

#define ROW_PANELS(STEP, r) \
    if (R > r) { STEP(r, 0); if (P > 1) STEP(r, 1); if (P > 2) STEP(r, 2); if (P > 3) STEP(r, 3); }
#define EVERY_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EVERY_ACC(X) \
    X(0, 0) X(0, 1) X(0, 2) X(0, 3) X(1, 0) X(1, 1) X(1, 2) X(1, 3) X(2, 0) X(2, 1) X(2, 2) X(2, 3) \
    X(3, 0) X(3, 1) X(3, 2) X(3, 3) X(4, 0) X(4, 1) X(4, 2) X(4, 3) X(5, 0) X(5, 1) X(5, 2) X(5, 3)

#ifndef FEW_PANELS
#define FEW_PANELS TILE_PANELS /* of a tile of one or two rows: more sums, which then wait less for one another */
#endif
/* A constant shape for each case, so that the compiler sees exactly its accumulators. */
#if TILE_PANELS == 4
#define SHAPES(f, R, ...) \
    switch (panels) { \
    case 1: f(R, 1, __VA_ARGS__); break; \
    case 2: f(R, 2, __VA_ARGS__); break; \
    case 3: f(R, 3, __VA_ARGS__); break; \
    default: f(R, 4, __VA_ARGS__); \
    }
#else
#define SHAPES(f, R, ...) if (R <= 2 && FEW_PANELS == 2 && panels == 2) f(R, 2, __VA_ARGS__); else f(R, 1, __VA_ARGS__);
#endif
#define CHOOSE(f, ...) \
    switch (rows) { \
    case 1: SHAPES(f, 1, __VA_ARGS__) break; \
    case 2: SHAPES(f, 2, __VA_ARGS__) break; \
    case 3: SHAPES(f, 3, __VA_ARGS__) break; \
    case 4: SHAPES(f, 4, __VA_ARGS__) break; \
    case 5: SHAPES(f, 5, __VA_ARGS__) break; \
    default: SHAPES(f, 6, __VA_ARGS__) \
    }

/* Up to so many rows a tile waits for its weight, which comes into the second-level cache so many groups before it is
 * wanted: its last ones' time is that of the next tile's first. */
#define FETCH_ROWS 4
#define FETCH_GROUPS 24
/* Tiles of more rows fetch where K has so many groups, so many of them before they are wanted. */
#define LONG_GROUPS 384
#define NEAR_GROUPS 16

#define USE(r, p) OPAQUE(c##r##p);
#endif
