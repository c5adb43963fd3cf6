"""What is minimized: a batch of samples run through the network, a loss against its data or against the float32 model,
and the reverse. Knows no optimizer."""

from collections.abc import Iterable

import numpy as np

from ..errors import CqError, UnsupportedError
from ..model import Transformer
from ..model.batch import check_tokens
from ..model.inputs import as_items, check_samples
from . import losses
from .batch import Packed
from .network import Network


class Objective:
    """Called with samples it runs the network forward and in reverse, and gives the loss."""

    def __init__(self, model: Transformer, network: Network):
        self.model, self.network = model, network

    def samples(self, data: Iterable) -> list:
        """What batches are drawn from. Raises CqError for data that do not fit."""
        return _listed(self.model, data)

    def targets(self, samples: list) -> list[np.ndarray]:
        """What the float32 model says of them, where that is asked; else nothing."""
        return []

    def loss(self, samples: list, targets: list[np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        """Forward alone: the loss, and the gradients that the network's reverse takes."""
        raise NotImplementedError

    def __call__(self, samples: list) -> float:
        loss, gradients = self.loss(samples, self.targets(samples))
        self.network.backward(**gradients)
        return loss


class NextToken(Objective):
    """The text itself."""

    def __init__(self, model: Transformer, network: Network):
        if model.head is None or not model.config.causal:
            raise UnsupportedError(
                f"loss: next_token needs a causal language model, this {model.config.family} model is none"
            )
        super().__init__(model, network)

    def samples(self, data: Iterable) -> list[np.ndarray]:
        samples = super().samples(data)
        if not any(len(ids) > 1 for ids in samples):
            raise CqError("data: next_token needs sequences of at least two tokens")
        return samples

    def loss(self, samples: list[np.ndarray], targets: list[np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        batch = Packed(samples)
        logits = self.network.logits(self.network.forward(batch))
        return losses.next_token(batch.split(logits), samples), {"logits": logits}


class Distillation(Objective):
    """The outputs of the float32 model as it was given: logits of a causal language model; else final states and,
    where it pools, embeddings as well. States say of every token what is missing, embeddings what it comes to."""

    def targets(self, samples: list[np.ndarray]) -> list[np.ndarray]:
        return self.model.logits(samples) if "head" in self.network.trunk else self.model.forward(samples)

    def loss(self, samples: list[np.ndarray], targets: list[np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        batch, config = Packed(samples), self.model.config
        states = self.network.forward(batch)
        if "head" in self.network.trunk:
            logits = self.network.logits(states)
            return losses.logit_distillation(batch.split(logits), targets), {"logits": logits}
        hidden = batch.split(states)
        loss, gradients = losses.hidden_distillation(hidden, targets)
        if config.pooling is not None:
            more, gradient = losses.embedding_distillation(losses.pool(hidden, config), losses.pool(targets, config))
            loss += more
            for g, pooled in zip(gradients, losses.pool_back(gradient, hidden, config)):
                g += pooled
        return loss, {"hidden": batch.join(gradients)}


class Pairs(Objective):
    """The cosine of two texts' embeddings, against scores."""

    def __init__(self, model: Transformer, network: Network):
        if model.config.pooling is None:
            raise UnsupportedError(
                f"loss: pairs needs a model that pools, this {model.config.family} model says no pooling"
            )
        if model.config.tail or len(model.config.modes) > 1 or model.config.pooling == "weightedmean":
            raise UnsupportedError(
                "loss: pairs has no gradients of modules after pooling, weightedmean and joined modes"
            )
        super().__init__(model, network)

    def samples(self, data: Iterable) -> list[tuple]:
        try:
            rows = [(first, second, float(score)) for first, second, score in data]
        except (TypeError, ValueError):
            raise CqError("data: pairs needs an iterable of (text or ids, text or ids, score)") from None
        if not rows:
            raise CqError("data: no samples came")
        if not all(-1 <= score <= 1 for *_, score in rows):
            raise CqError("data: scores of pairs are cosines, -1 … 1; divide other scales by their largest score")
        flat = _listed(self.model, [text for row in rows for text in row[:2]])
        return list(zip(flat[::2], flat[1::2], (row[2] for row in rows)))

    def loss(self, samples: list[tuple], targets: list[np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        sequences = [ids for first, second, _ in samples for ids in (first, second)]
        batch, config = Packed(sequences), self.model.config
        hidden = batch.split(self.network.forward(batch))
        loss, gradient = losses.pair_similarity(losses.pool(hidden, config), np.array([score for *_, score in samples]))
        return loss, {"hidden": batch.join(losses.pool_back(gradient, hidden, config))}


OBJECTIVES = {"next_token": NextToken, "distillation": Distillation, "pairs": Pairs}


def _listed(model: Transformer, data: Iterable) -> list[np.ndarray]:
    """Texts and ids, batches of them opened, as checked ids."""
    check_samples(data, "data")
    sequences = []
    for sample in as_items(data):
        several = isinstance(sample, (list, tuple)) and not all(isinstance(item, (int, np.integer)) for item in sample)
        sequences += [
            model.tokenize(item) if isinstance(item, str) else item for item in (sample if several else [sample])
        ]
    if not sequences:
        raise CqError("data: no samples came")
    checked = check_tokens(sequences, model.config.vocab_size, model.config.max_positions)
    plain = [ids for ids in checked if isinstance(ids, np.ndarray)]
    if len(plain) < len(checked):
        raise CqError("data: training takes plain ids, without token types or positions of their own")
    return plain
