"""What people pass in: pairs for cross-encoders beside sentence-transformers' CrossEncoder, a tokenizer's mappings with
their masks beside transformers, columns of texts; and what is refused with advice."""

import numpy as np
import pandas
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import cq
from cq.calibrate import calibrate

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h i j k l m n o p".split()
SIZES = dict(
    vocab_size=len(WORDS),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    pad_token_id=0,
)


def saved(folder, model, words=True):
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.3)
    model.eval().save_pretrained(folder)
    if words:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    """Folder of a cross-encoder with one label."""
    model = BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=30, num_labels=1))
    return saved(tmp_path_factory.mktemp("cross"), model)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS[5:] + ["unknown"], rng.integers(1, 25)))

    return [(text(), text()) for _ in range(200)]


@pytest.fixture(scope="module")
def scores(cross, pairs):
    return CrossEncoder(str(cross), device="cpu").predict(pairs)


def test_scores_are_cross_encoders(cross, pairs, scores):
    model = cq.load(cross)
    found = model.classify(pairs)
    np.testing.assert_allclose(found[:, 0], scores, atol=1e-5)
    assert np.ptp(scores) > 0.1 and ((found > 0) & (found < 1)).all()
    assert np.array_equal(model.classify([list(pair) for pair in pairs]), found)
    assert np.array_equal(model.classify(np.array(pairs)), found)
    assert np.array_equal(model.classify(pairs[0]), found[:1])


def test_ranks_are_cross_encoders(cross, pairs):
    reference, model = CrossEncoder(str(cross), device="cpu"), cq.load(cross)
    documents = [second for _, second in pairs[:40]]
    for query, _ in pairs[:3]:
        found, wanted = model.rank(query, documents), reference.rank(query, documents)
        assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in wanted]
        np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in wanted], atol=1e-5)
    assert model.rank("a", []) == []
    with pytest.raises(cq.CqError, match="rank: need a query"):
        model.rank(["a"], documents)
    with pytest.raises(cq.CqError, match="rank: need a query"):
        model.rank("a", [documents])


def test_int8_ranks_in_the_same_order(cross, pairs):
    """Of documents whose scores differ by more than rounding; a random model's others lie anywhere."""
    model, documents = cq.load(cross), [second for _, second in pairs[:20]]
    for quantized in (cq.quantize(model, cq.Dynamic()), cq.quantize(model, cq.Static(), calibration=pairs)):
        same = []
        for query, _ in pairs[:10]:
            scores = [one.classify([(query, text) for text in documents])[:, 0] for one in (model, quantized)]
            apart = scores[0][:, None] - scores[0] > 0.1
            same.append((scores[1][:, None] > scores[1])[apart])
        assert np.mean(np.concatenate(same)) >= 0.95


@pytest.mark.parametrize(
    "entries, activation",
    [
        ({}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Tanh", "version": "5.0.0"}}, None),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, None),
        ({}, "torch.nn.modules.linear.Identity"),
    ],
)
def test_activations_are_those_that_the_files_say(cross, pairs, tmp_path, entries, activation):
    import json

    if activation is not None:
        CrossEncoder(str(cross), device="cpu", activation_fn=torch.nn.Identity()).save(str(tmp_path))
    else:
        saved_files(cross, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    wanted = CrossEncoder(str(tmp_path), device="cpu").predict(pairs[:30])
    np.testing.assert_allclose(cq.load(tmp_path).classify(pairs[:30])[:, 0], wanted, atol=2e-5)


def saved_files(folder, target):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def test_several_labels_are_logits(tmp_path, pairs):
    folder = saved(
        tmp_path, BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=30, num_labels=3))
    )
    wanted = CrossEncoder(str(folder), device="cpu").predict(pairs[:30])
    np.testing.assert_allclose(cq.load(folder).classify(pairs[:30]), wanted, atol=1e-5)
    with pytest.raises(cq.UnsupportedError, match="3 labels"):
        cq.load(folder).rank("a", ["b"])


def test_types_are_left_out_where_the_tokenizer_has_none(cross, pairs, tmp_path):
    saved_files(cross, tmp_path)
    names = '{"model_input_names": ["input_ids", "attention_mask"], "tokenizer_class": "BertTokenizer"}'
    (tmp_path / "tokenizer_config.json").write_text(names)
    wanted = CrossEncoder(str(tmp_path), device="cpu").predict(pairs[:30])
    found = cq.load(tmp_path).classify(pairs[:30])[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - cq.load(cross).classify(pairs[:30])[:, 0]).max() > 1e-3


def test_saved_and_static_cross_encoders_say_the_same(cross, pairs, tmp_path):
    model = cq.load(cross)
    for kind in (model, cq.quantize(model, cq.Dynamic())):
        cq.save(kind, tmp_path / "model.safetensors")
        assert np.array_equal(cq.load(tmp_path / "model.safetensors").classify(pairs[:9]), kind.classify(pairs[:9]))


# --- mappings ---------------------------------------------------------------------------------------------------------

TEXTS = ["a b c", "d", "e f g h i j k", "l m"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("encoder"), BertModel(BertConfig(**SIZES, max_position_embeddings=30)))


@pytest.mark.parametrize("tensors", ["np", "pt", None])
def test_a_tokenizers_result_is_understood(encoder, tensors):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), cq.load(encoder)
    batch = tokenizer(TEXTS, padding=True, return_tensors=tensors)
    assert np.array_equal(model.embed(batch), model.embed(TEXTS))
    assert [len(h) for h in model.forward(batch)] == [5, 3, 9, 4]
    assert np.array_equal(model.embed(dict(batch)), model.embed(TEXTS))
    assert np.array_equal(model.embed([{key: batch[key][1] for key in batch}]), model.embed(TEXTS[1:2]))
    assert np.array_equal(model.embed(tokenizer("d")), model.embed("d"))


def test_pairs_as_ids_with_types(cross, pairs):
    tokenizer, model = AutoTokenizer.from_pretrained(cross), cq.load(cross)
    few = pairs[:20]
    batch = tokenizer(*map(list, zip(*few)), padding=True, truncation=True, max_length=30)
    logits = model.classify(batch)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), model.classify(few), atol=1e-6)
    del batch["token_type_ids"]
    assert np.abs(model.classify(batch) - logits).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("where", ["right", "left", "between"])
def test_masks_are_those_of_transformers(tmp_path, kind, where):
    ids, mask = np.random.default_rng(1).integers(5, 20, (3, 12)), np.ones((3, 12), int)
    mask[0, {"right": slice(8, None), "left": slice(4), "between": slice(3, 6)}[where]] = 0
    mask[1, {"right": slice(2, None), "left": slice(10), "between": slice(4, 5)}[where]] = 0
    small = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40, vocab_size=21)
    if kind == "bert":
        model = BertModel(BertConfig(**small, max_position_embeddings=30))
    elif kind == "roberta":
        model, ids = RobertaModel(RobertaConfig(**small, max_position_embeddings=30)), np.where(mask, ids, 1)
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=24, n_head=3, n_layer=2, vocab_size=21, n_positions=30))
    else:
        model = LlamaForCausalLM(LlamaConfig(**small, max_position_embeddings=30))
    folder = saved(tmp_path, model, words=False)
    with torch.no_grad():
        given = dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
        wanted = model(**given, output_hidden_states=True).hidden_states[-1].numpy()
    for row, found in enumerate(cq.load(folder).forward({"input_ids": ids, "attention_mask": mask})):
        np.testing.assert_allclose(found, wanted[row][mask[row] == 1], atol=2e-4)


def test_masked_rows_have_the_bits_of_a_recording(encoder):
    """What plays back recorded calls must not take rows with positions or types of their own for plain ones."""
    model, plain = cq.load(encoder), [np.arange(5, 14)]
    holes = {"input_ids": np.arange(5, 17)[None], "attention_mask": np.array([[1, 1, 0, 0, 0] + [1] * 7])}
    first = [model.forward(holes)[0], model.forward(plain)[0]]
    for _ in range(3):
        assert np.array_equal(model.forward(plain)[0], first[1])
        assert np.array_equal(model.forward(holes)[0], first[0])


@pytest.mark.parametrize(
    "given, words",
    [
        ({"text": ["a"]}, r"got the keys \['text'\]"),
        ({}, r"got the keys \[\]"),
        ({"input_ids": [[5]], "labels": [1]}, "labels"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "attention_mask has not the shape"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 1], [1, 1]]}, "attention_mask has not the shape"),
        ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, "row 0: no token"),
        ({"input_ids": [[5, 6]], "attention_mask": [[2, 1]]}, "must be 0 or 1"),
        ({"input_ids": [[5, 6]], "token_type_ids": [[0, 2]]}, r"token types must be 0 … 1"),
        ({"input_ids": [[5, 6]], "token_type_ids": [[0, -1]]}, r"token types must be 0 … 1"),
        ({"input_ids": [[5, 600]]}, "600"),
        ({"input_ids": ["a"]}, "whole numbers"),
        ({"input_ids": 5}, "whole numbers"),
        ({"input_ids": [[5.5]]}, "whole numbers"),
        ({"input_ids": [list(range(5, 15)) * 4]}, "40 tokens"),
        ([{"text": "a"}], r"tokens\[0\]: a mapping"),
        (b"a", "bytes"),
        (np.array([b"a"]), "bytes"),
    ],
)
def test_other_mappings_are_refused(encoder, given, words):
    model = cq.load(encoder)
    for call in (model.embed, model.forward):
        if call == model.forward and not isinstance(given, (dict, list)):
            continue
        with pytest.raises(cq.CqError, match=words):
            call(given)


def test_masked_arrays_are_refused(encoder):
    """NumPy's masks are not read: what they hide would count as tokens."""
    model, ids = cq.load(encoder), np.ma.masked_equal([[5, 6, 0]], 0)
    for given in (ids, [ids[0]], {"input_ids": ids}, {"input_ids": [ids[0]]}):
        with pytest.raises(cq.CqError, match="tokens.*: a masked array"):
            model.forward(given)
    assert len(model.forward(np.ma.masked_array([[5, 6]], False))) == 1


def test_padded_rows_without_a_mask_are_refused(encoder):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), cq.load(encoder)
    padded = tokenizer(TEXTS, padding=True)["input_ids"]
    for rows in (padded, np.array(padded), torch.tensor(padded)):
        for call in (model.embed, model.forward):
            with pytest.raises(cq.CqError, match=r"tokens\[0\]: ends in the padding token 0.*attention_mask"):
                call(rows)
    assert len(model.forward(np.array(padded)[2:3])) == 1
    assert len(model.forward([np.array(row) for row in padded])) == 4  # each given as it is


def test_an_end_of_text_that_is_padding_too_is_no_padding(tmp_path):
    config = LlamaConfig(**{**SIZES, "pad_token_id": 2}, max_position_embeddings=30, eos_token_id=2)
    model = cq.load(saved(tmp_path, LlamaForCausalLM(config), words=False))
    assert len(model.forward(np.array([[5, 6, 2], [7, 8, 2]]))) == 2
    with pytest.raises(cq.CqError, match="padding token 2"):
        model.forward(np.array([[5, 6, 2], [7, 2, 2]]))


# --- columns ----------------------------------------------------------------------------------------------------------


class Series:
    """As pandas and polars have it."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)


class Column(Series):
    """As pyarrow has it: its items are no texts, but it can be a list."""

    def __iter__(self):
        return iter([object()] * len(self.values))

    def to_pylist(self):
        return list(self.values)


class Table(Series):
    columns = ["text"]


@pytest.mark.parametrize("column", [np.array, lambda x: np.array(x, object), tuple, iter, Series, Column])
def test_columns_are_texts(encoder, column):
    model = cq.load(encoder)
    assert np.array_equal(model.embed(column(TEXTS)), model.embed(TEXTS))
    assert np.array_equal(model.embed(np.array(TEXTS[0])), model.embed(TEXTS[:1]))


def test_pandas_columns_are_texts(encoder):
    model, table = cq.load(encoder), pandas.DataFrame({"text": TEXTS})
    assert np.array_equal(model.embed(table["text"]), model.embed(TEXTS))
    assert calibrate(model, table["text"], "minmax").samples == len(TEXTS)
    with pytest.raises(cq.CqError, match="got a table, a DataFrame; give one of its columns"):
        model.embed(table)


def test_whole_tables_are_refused(encoder):
    with pytest.raises(cq.CqError, match="got a table, a Table; give one of its columns"):
        cq.load(encoder).embed(Table(["text"]))


def test_pairs_and_texts_do_not_mix(cross):
    with pytest.raises(cq.CqError, match="pairs and others together"):
        cq.load(cross).classify([("a", "b"), "c"])
