"""A cross-encoder with one label, which training on the pairs of STS 2012 makes of all-MiniLM-L6-v2, and queries to
rank documents for. Times nothing."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cq.report.samples import files

from . import minilm

STEPS, BATCH, UNRELATED, RATE = 150, 12, 4, 1e-4  # UNRELATED: pairs in a batch beside STS's, scored 0
LONGEST = 40  # tokens of a pair in training
QUERIES, DOCUMENTS = 40, 8  # queries of each file; documents of each query
Pair = tuple[str, str]


def scored(source: str) -> dict[str, list[tuple[Pair, float]]]:
    """Name of each file → its pairs and their scores of 0…5; pairs without a score are left out."""
    found = {}
    for path in files(Path(source)):
        lines = (line.rstrip("\r").split("\t") for line in path.read_text(encoding="utf-8").split("\n"))
        found[path.name] = [((line[1], line[2]), float(line[0])) for line in lines if line[0].strip()]
    return found


def spread(source: str, count: int) -> list[tuple[Pair, float]]:
    """So many of the files' pairs and their scores, from all over."""
    every = [row for rows in scored(source).values() for row in rows]
    return [every[i * len(every) // count] for i in range(count)]


def queries(source: str) -> list[tuple[str, list[str]]]:
    """Queries from the files, each with the sentence that it is paired with and others of the same file."""
    rng, found = np.random.default_rng(0), []
    for rows in scored(source).values():
        pairs = list({query: (query, partner) for (query, partner), _ in rows}.values())
        every = sorted({partner for _, partner in pairs})
        for i in rng.permutation(len(pairs))[:QUERIES]:
            query, partner = pairs[i]
            others = [text for text in every if text not in (query, partner)]
            drawn = rng.choice(len(others), DOCUMENTS - 1, replace=False)
            found.append((query, [partner, *(others[j] for j in drawn)]))
    return found


def folder() -> Path:
    """The cross-encoder as a Hugging Face folder: trained when it is first asked for, kept in the user's cache."""
    target = minilm.cache() / f"cross-encoder-{STEPS}-{BATCH}-{UNRELATED}-{RATE:g}-{LONGEST}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            train(Path(temporary) / "model")
            minilm.move(Path(temporary) / "model", target)
    return target


def train(out: Path) -> None:
    """Binary cross-entropy with scores of 0…1, as sentence-transformers trains one label; of the pairs, STS 2014 has
    neither sentence."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder())
    model = BertForSequenceClassification.from_pretrained(minilm.folder(), num_labels=1).train()
    model.bert.embeddings.requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    judged = {text for rows in scored(minilm.EVALUATION).values() for pair, _ in rows for text in pair}
    rows = [row for part in scored(minilm.CALIBRATION).values() for row in part if judged.isdisjoint(row[0])]
    for _, (pairs, scores) in zip(range(STEPS), batches(rows)):
        given = tokenized(tokenizer, pairs, LONGEST)
        wanted = torch.tensor(scores, dtype=torch.float32) / 5
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**given).logits[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        rate.step()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


def batches(rows: list[tuple[Pair, float]]) -> Iterator[tuple[list[Pair], list[float]]]:
    """Pairs and their scores, all of STS's once before any comes again, and unrelated ones."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(rows))
        for i in range(0, len(rows) - BATCH + 1, BATCH):
            pairs, scores = zip(*(rows[j] for j in order[i : i + BATCH]))
            drawn = rng.choice(len(rows), (UNRELATED, 2), replace=False)
            yield [*pairs, *((rows[j][0][0], rows[k][0][1]) for j, k in drawn)], [*scores, *[0.0] * UNRELATED]


def tokenized(tokenizer, pairs: list[Pair], longest: int | None = None) -> dict:
    """As torch's tensors."""
    first, second = map(list, zip(*pairs))
    return tokenizer(first, second, truncation=True, max_length=longest, padding=True, return_tensors="pt")


def reference(folder: Path, pairs: list[Pair]) -> np.ndarray:
    """transformers' scores of pairs, float32 of 0…1."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model, tokenizer = (kind.from_pretrained(folder) for kind in (BertForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        return torch.sigmoid(model.eval()(**tokenized(tokenizer, pairs)).logits[:, 0]).numpy()
