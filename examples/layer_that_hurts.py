"""Find the layer that costs the most accuracy in int8, and keep it in float32.

    python examples/layer_that_hurts.py all-MiniLM-L6-v2 texts.txt

TEXTS has one text a line: one half calibrates, the other half judges. Prints the three worst layers and what the model
gains when the worst one stays in float32.
"""

import sys
from pathlib import Path

import cq


def main(model: str, texts: str) -> None:
    lines = [line for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    calibration, judged = lines[::2], lines[1::2]
    float32 = cq.load(model)
    found = cq.sensitivity(float32, judged, [cq.Static()], calibration)
    worst = sorted(found.layers, key=lambda layer: -layer.alone["static"].share)[:3]
    for layer in worst:
        print(f"{layer.alone['static'].share:.0%} of the noise  {layer.name}")
    exact = float32.embed(judged)
    for exclude in ((), (worst[0].name,)):
        int8 = cq.quantize(float32, cq.Static(exclude=exclude), calibration=calibration)
        cosine = (int8.embed(judged) * exact).sum(axis=1).mean()
        print(f"float32 layers: {', '.join(exclude) or 'none'}; cosine {cosine:.5f}; {int8.nbytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
