/* The table of one instruction set. Included last by kernel_*.c. */
const cq_kernels ISA(cq_kernels) = {
    .name = ISA_NAME, .rows_f32 = CQ_TILE_ROWS, .panels = TILE_PANELS,
    .tile_i8 = ISA(tile_i8), .strip_i8 = ISA(strip_i8), .store_i8 = ISA(store_i8), .store_f32 = ISA(store_f32),
#ifdef CLIPPED
    .clip = ISA(clip), .strip_clipped = ISA(strip_clipped),
#endif
    .tile_f32 = ISA(tile_f32), .tile_f32_i8 = ISA(tile_f32_i8), .widen = ISA(widen), .add_group = ISA(add_group),
    .min_max = ISA(min_max), .quantize = ISA(quantize), .dequantize = ISA(dequantize), .sum_codes = ISA(sum_codes),
    .flip = ISA(flip), .norm = ISA(norm), .gate = ISA(gate), .rope = ISA(rope), .add = ISA(add), .scale = ISA(scale),
    .softmax_f32 = ISA(softmax_f32), .softmax_i8 = ISA(softmax_i8), .softmax_scaled = ISA(softmax_scaled),
    .slope = ISA(slope), .round = ISA(round), .exponents = ISA(exponents), .softmax_back = ISA(softmax_back),
    .rescale = ISA(rescale), .norm_kept = ISA(norm_kept), .norm_back = ISA(norm_back),
    .dot = ISA(dot), .column_sums = ISA(column_sums), .adamw = ISA(adamw),
    .interleave = ISA(interleave), .peak_i8 = ISA(peak_i8), .peak_f32 = ISA(peak_f32),
};
