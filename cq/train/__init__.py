"""Training in float32 without torch: plain, or quantization-aware (Jacob et al. 2018)."""
