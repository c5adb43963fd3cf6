"""float32 model → float32 model that quantizes better: rotated, compensated, equalized. Knows no files."""
