/* AVX2 and FMA: 16 lanes are two registers. Integer products are of clipped codes (vpmaddubsw, tiles_clipped.h), or
 * widen to int16 (vpmaddwd): no sum ever saturates. Cost on Zen 4 per core: either 2 a cycle, latency 3; fma 2, latency
 * 4. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "affine.h"
#include "kernel.h"

#define ISA(name) name##_avx2
#define ISA_NAME "avx2"
#define INLINE static inline __attribute__((always_inline))
#define BULKY INLINE
#define TILE_PANELS 1
#define CLIPPED

#include "lanes_avx2.h"

#define i32_byte i32_shifted_byte
#define OPAQUE(x) __asm__ volatile("" : "+x"((x).lo), "+x"((x).hi))

#include "rows.h"
#include "hadamard.h"
#include "softmax.h"
#include "training.h"
#include "epilogue.h"
#include "tiles_i16.h"
#include "tiles_clipped.h"
#include "clip.h"
#include "tiles_f32.h"
#include "table.h"
