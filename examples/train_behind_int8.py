"""Fine-tune a model on your own texts behind fake quantization, and compare it with plain static quantization.

    python examples/train_behind_int8.py all-MiniLM-L6-v2 texts.txt out.safetensors 300

TEXTS has one text a line, thousands where you have them. No labels are needed: the targets are the float32 model's own
outputs. Prints the mean cosine with the float32 embeddings of texts that were not trained on.
"""

import sys
from pathlib import Path

import cq


def main(model: str, texts: str, output: str, steps: int = 300) -> None:
    lines = [line for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    held_out, train = lines[::10], [line for i, line in enumerate(lines) if i % 10]
    float32 = cq.load(model)
    static = cq.quantize(float32, cq.Static(), calibration=train[:500])
    qat = cq.QAT(target=cq.Static(), steps=steps, batch_size=min(32, len(train)))
    trained = cq.quantize(float32, qat, calibration=train, progress=lambda done, total: None)
    exact = float32.embed(held_out)
    for name, int8 in (("static", static), ("QAT", trained)):
        print(f"{name:8} cosine {(int8.embed(held_out) * exact).sum(axis=1).mean():.5f}")
    cq.save(trained, output)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
