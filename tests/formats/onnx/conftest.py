"""Exported models in ONNX Runtime, as callers run them: padded batches, and past keys and values."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as runtime
import pytest

import cq

PAD = 3  # any id: what padding holds must not matter


class Exported:
    """A graph in ONNX Runtime, checked by onnx before. optimized: the kinds of its nodes after optimization."""

    def __init__(self, path: Path):
        onnx.checker.check_model(path, full_check=True)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        # weight-only multiplies in float32, as the graph says; by default activations are coded on the way
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.optimized_model_filepath = str(path.with_suffix(".optimized"))
        self.path, self.session = path, runtime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.optimized = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        self.inputs = {each.name: each for each in self.session.get_inputs()}

    def feeds(
        self,
        tokens: list,
        left: bool = False,
        types: list | None = None,
        past: dict | None = None,
        prompt: int | None = None,
        seen: int | None = None,
    ) -> dict:
        """Inputs by name for padded sequences; past: outputs of the call before, whose mask is all 1; prompt: first
        tokens that are not pooled; seen: tokens that others see, of which the rest are none."""
        ids, mask = padded(tokens, left)
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            feeds["token_type_ids"] = ids * 0 if types is None else padded(types, left)[0] * mask
        if prompt is not None:
            feeds["prompt_length"] = np.array(prompt)
        if seen is not None:
            feeds["attention_mask"] = mask * (np.arange(ids.shape[1]) < seen)
        before = 0
        for name, one in self.inputs.items():
            if name.startswith("past_key_values"):
                empty = np.zeros((len(ids), one.shape[1], 0, one.shape[3]), np.float32)
                feeds[name] = (past or {}).get(name.replace("past_key_values", "present"), empty)
                before = feeds[name].shape[2]
        if before:
            feeds["attention_mask"] = np.ones((len(ids), before + ids.shape[1]), np.int64)
        return feeds

    def __call__(self, *arguments, **more) -> dict:
        """Outputs by name; arguments as those of `feeds`."""
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, self.feeds(*arguments, **more))))

    def rows(self, tokens: list, output: str = "last_hidden_state", left: bool = False) -> list[np.ndarray]:
        """An output for each token, without those of padding."""
        batch = self(tokens, left)[output]
        return [row[len(row) - len(ids) :] if left else row[: len(ids)] for row, ids in zip(batch, tokens)]


def padded(tokens: list, left: bool) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, tokens))
    ids, mask = np.full((len(tokens), longest), PAD), np.zeros((len(tokens), longest), np.int64)
    for i, sequence in enumerate(tokens):
        where = slice(longest - len(sequence), None) if left else slice(len(sequence))
        ids[i, where], mask[i, where] = sequence, 1
    return ids, mask


@pytest.fixture(scope="session")
def run_onnx() -> type[Exported]:
    """run_onnx(path) → a graph's file in ONNX Runtime."""
    return Exported


@pytest.fixture
def exported(tmp_path):
    """exported(model) → its graph in ONNX Runtime."""

    def make(model: cq.Transformer) -> Exported:
        cq.export(model, tmp_path / "model.onnx")
        return Exported(tmp_path / "model.onnx")

    return make


@pytest.fixture
def sequences():
    """sequences(model, lengths) → random ids."""

    def make(model: cq.Transformer, lengths=(7, 1, 12)) -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        return [rng.integers(0, model.config.vocab_size, n) for n in lengths]

    return make
