"""Heads that read tokens, and sequence classifiers over decoders, against transformers on small random models with a
real tokenizer, and under every strategy."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    CamembertConfig,
    CamembertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForTokenClassification,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    pipeline,
)

import cq
from cq.model.spans import best_spans

WORDS = 30522
SIZES = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
BERT = dict(**SIZES, vocab_size=WORDS, max_position_embeddings=120)
ROBERTA = BERT | dict(type_vocab_size=1, pad_token_id=0, bos_token_id=101, eos_token_id=102)
DISTIL = dict(vocab_size=WORDS, dim=36, n_layers=2, n_heads=3, hidden_dim=50, max_position_embeddings=90)
DECODER = dict(**SIZES, vocab_size=WORDS, num_key_value_heads=2, max_position_embeddings=110, pad_token_id=0)
GPT2 = dict(vocab_size=WORDS, n_embd=36, n_layer=2, n_head=3, n_positions=110, pad_token_id=0)
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
LABELS = dict(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})
TAGGERS = {
    "bert": (BertForTokenClassification, BertConfig(**BERT, **LABELS)),
    "roberta": (RobertaForTokenClassification, RobertaConfig(**ROBERTA, **LABELS)),
    "camembert": (CamembertForTokenClassification, CamembertConfig(**ROBERTA, **LABELS)),
    "distilbert": (DistilBertForTokenClassification, DistilBertConfig(**DISTIL, **LABELS)),
    "llama": (LlamaForTokenClassification, LlamaConfig(**DECODER, **LABELS)),
    "gpt2": (GPT2ForTokenClassification, GPT2Config(**GPT2, **LABELS)),
}
ANSWERERS = {
    "bert": (BertForQuestionAnswering, BertConfig(**BERT)),
    "roberta": (RobertaForQuestionAnswering, RobertaConfig(**ROBERTA)),
    "distilbert": (DistilBertForQuestionAnswering, DistilBertConfig(**DISTIL)),
}
MASKED = {
    "bert": (BertForMaskedLM, BertConfig(**BERT)),
    "bert relu": (BertForPreTraining, BertConfig(**BERT, hidden_act="relu")),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**ROBERTA, hidden_act="relu")),
    "roberta untied": (XLMRobertaForMaskedLM, XLMRobertaConfig(**ROBERTA, tie_word_embeddings=False)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(**DISTIL, activation="relu")),
}
DECODERS = {
    "llama": (LlamaForSequenceClassification, LlamaConfig(**DECODER, num_labels=3)),
    "mistral": (MistralForSequenceClassification, MistralConfig(**DECODER, sliding_window=None, num_labels=2)),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config(**DECODER, num_labels=1)),
    "qwen3": (Qwen3ForSequenceClassification, Qwen3Config(**DECODER, head_dim=8, num_labels=5)),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(**GPT2, num_labels=4)),
}
ALL = {
    f"{kind} {name}": case
    for kind, cases in (("tags", TAGGERS), ("spans", ANSWERERS), ("words", MASKED), ("classes", DECODERS))
    for name, case in cases.items()
}
TEXTS = [
    "Angela Merkel unexpectedly visited Chattanooga, Tennessee.",
    "Transnational photosynthesizers ate 1,234 unhyphenatable kumquats!",
    "ok",
    "日本 and naïve café 🙂 owners",
]
STRATEGIES = [cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.QAT(steps=2, batch_size=2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory, minilm_folder):
    """made(kind, config) → (folder, the random model saved there, transformers' tokenizer, what cq loads)."""
    done, tokenizer = {}, BertTokenizer.from_pretrained(minilm_folder)

    def make(kind, config):
        key = kind, config.to_json_string()
        if key not in done:
            folder = tmp_path_factory.mktemp("model")
            torch.manual_seed(4)
            reference = kind(config).eval()
            for name, parameter in reference.named_parameters():
                scale = 0.6 if name.startswith(("classifier", "qa_outputs", "score")) else 0.2
                torch.nn.init.normal_(parameter, float("norm" in name.lower() and name.endswith("weight")), scale)
            reference.save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                if (minilm_folder / name).exists():
                    shutil.copy(minilm_folder / name, folder)
            done[key] = folder, reference, tokenizer, cq.load(folder)
        return done[key]

    return make


def logits_of(reference, tokens):
    with torch.no_grad():
        found = [reference(torch.tensor(np.asarray(ids))[None]) for ids in tokens]
    if hasattr(found[0], "start_logits"):
        return [np.stack([one.start_logits[0].numpy(), one.end_logits[0].numpy()], 1) for one in found]
    return [getattr(one, "logits", getattr(one, "prediction_logits", None))[0].numpy() for one in found]


def ours_of(model, tokens):
    return model.logits(tokens) if model.head is not None else list(model.classify(tokens))


def ragged(lengths=(7, 1, 30, 80)):
    rng = np.random.default_rng(6)
    return [rng.integers(1000, WORDS, n) for n in lengths]


def decibels(exact, ours):
    noise = sum(np.square(a - b).sum() for a, b in zip(ours, exact, strict=True))
    return 10 * np.log10(sum(np.square(b).sum() for b in exact) / noise)


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_of_transformers(made, name):
    _, reference, _, model = made(*ALL[name])
    for a, b in zip(ours_of(model, ragged()), logits_of(reference, ragged()), strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        assert np.abs(a - b).max() < 1e-4 * max(1, np.abs(b).max())


@pytest.mark.parametrize("name", ["tags bert", "tags gpt2", "spans distilbert", "words bert", "words roberta untied"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_heads_run_in_every_strategy(made, tmp_path, name, strategy):
    *_, model = made(*ALL[name])
    samples = ragged((7, 12, 30))
    needs = isinstance(strategy, (cq.Static, cq.QAT))
    quantized = cq.quantize(model, strategy, samples * 4 if needs else None)
    assert all(layer.runs_in == quantized.strategy.name for _, layer in quantized.linears())
    assert "head" in dict(quantized.linears())
    ours = ours_of(quantized, samples)
    assert decibels(ours_of(model, samples), ours) > (8 if isinstance(strategy, cq.QAT) else 20)
    cq.save(quantized, tmp_path / "q.safetensors")
    again = cq.load(tmp_path / "q.safetensors")
    assert again.config == model.config and all(map(np.array_equal, ours, ours_of(again, samples)))
    alone = [ours_of(quantized, [ids])[0] for ids in samples]
    assert all(map(np.array_equal, ours, alone))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_decoders_classify_in_every_strategy(made, strategy):
    *_, model = made(*DECODERS["qwen3"])
    samples = ragged((7, 12, 30))
    needs = isinstance(strategy, (cq.Static, cq.QAT))
    quantized = cq.quantize(model, strategy, samples * 4 if needs else None)
    assert dict(quantized.linears())["classifier.scores"].runs_in == quantized.strategy.name
    assert decibels(ours_of(model, samples), ours_of(quantized, samples)) > (8 if needs else 20)


# --- entities ---------------------------------------------------------------------------------------------------------


def same_entities(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert list(a) == list(b)
        assert abs(a["score"] - b["score"]) < 1e-4
        assert {k: v for k, v in a.items() if k != "score"} == {k: v for k, v in b.items() if k != "score"}


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_entities_are_those_of_the_pipeline(made, name, aggregation):
    folder, reference, tokenizer, model = made(*TAGGERS[name])
    theirs = pipeline("token-classification", model=reference, tokenizer=tokenizer, aggregation_strategy=aggregation)
    found = model.entities(TEXTS, aggregation, ignore_labels=())
    for ours, text in zip(found, TEXTS, strict=True):
        same_entities(ours, theirs(text, ignore_labels=[""]))
        same_entities(model.entities(text, aggregation), theirs(text))
    assert sum(len(entities) for entities in found) >= 5
    assert model.entities(TEXTS, aggregation, ignore_labels=(), batch_size=1) == found


def test_entities_of_byte_level_tokenizers(made, tmp_path, byte_tokenizer):
    """Words end at white space there, where no token says that it continues one."""
    from transformers import PreTrainedTokenizerFast

    folder, reference, *_ = made(*TAGGERS["roberta"])
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=100)
    theirs = pipeline("token-classification", model=reference, tokenizer=tokenizer, aggregation_strategy="average")
    text = "Angela went to Rome"
    with pytest.warns(UserWarning, match="does not support real words"):
        wanted = theirs(text)
    same_entities(cq.load(tmp_path).entities(text, "average"), wanted)


# --- answers ----------------------------------------------------------------------------------------------------------

CONTEXT = (
    "The Ceylonese photosynthesizer was rediscovered in Chattanooga by Angela Merkel, who had travelled "
    "unexpectedly from Tennessee to see the kumquats of the transcontinental railway station. "
) * 5


def answers_by_hand(reference, tokenizer, question, context, top_k, longest, impossible):
    """As transformers' pipeline did it until version 5 dropped it: windows of the context, probabilities over the
    context's tokens and the first, the best products of a begin and an end not before it, whole words."""
    most = min(tokenizer.model_max_length, 384)
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=most,
        stride=min(most // 2, 128),
        return_overflowing_tokens=True,
    )
    found, nothing = [], 1.0
    for n, ids in enumerate(encoded["input_ids"]):
        encoding = encoded.encodings[n]
        kwargs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded and reference.config.model_type == "bert":
            kwargs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][n]])
        with torch.no_grad():
            result = reference(**kwargs)
        inside = np.array([s == 1 for s in encoding.sequence_ids])
        inside[0] = True
        begin, end = (
            torch.softmax(torch.where(torch.tensor(inside), scores[0], torch.tensor(-10000.0)), 0).numpy()
            for scores in (result.start_logits, result.end_logits)
        )
        nothing = min(nothing, begin[0] * end[0])
        for first in range(1, len(ids)):
            for last in range(first, min(first + longest, len(ids))):
                if inside[first] and inside[last]:
                    start = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
                    stop = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
                    found.append((begin[first] * end[last], start, stop))
    found += [(nothing, 0, 0)] * impossible
    return sorted(found, key=lambda row: -row[0])[:top_k], len(encoded["input_ids"])


@pytest.mark.parametrize("name", ANSWERERS)
def test_answers_are_those_of_the_pipeline(made, name):
    folder, reference, tokenizer, model = made(*ANSWERERS[name])
    tokenizer.model_max_length = model.config.max_length
    for top_k, longest, impossible in ((1, 15, False), (4, 3, True)):
        question = "Who rediscovered the photosynthesizer?"
        wanted, windows = answers_by_hand(reference, tokenizer, question, CONTEXT, top_k, longest, impossible)
        found = model.answer(question, CONTEXT, top_k, max_answer_len=longest, handle_impossible_answer=impossible)
        found = [found] if top_k == 1 else found
        assert windows > 1 and len(found) == top_k
        for answer, (score, start, end) in zip(found, wanted):
            assert abs(answer["score"] - score) < 1e-5 and (answer["start"], answer["end"]) == (start, end)
            assert answer["answer"] == CONTEXT[start:end]


def test_best_spans_by_hand():
    scores = np.log(np.array([[1, 1], [6, 1], [1, 5], [2, 3]], np.float32))
    spans, nothing = best_spans(scores, np.array([True, True, True, False]), 2, 2)
    assert [span[:2] for span in spans] == [(1, 2), (1, 1)]
    np.testing.assert_allclose([nothing, spans[0][2]], [1 / 8 * 1 / 7, 6 / 8 * 5 / 7], rtol=1e-6)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_masks_are_filled_as_by_the_pipeline(made, name):
    _, reference, tokenizer, model = made(*MASKED[name])
    theirs = pipeline("fill-mask", model=reference, tokenizer=tokenizer)
    texts = ["The [MASK] was re-discovered, oddly.", "[MASK] of the [MASK] railway"]
    found = model.fill(texts, 4)
    for ours, text in zip(found, texts, strict=True):
        wanted = theirs(text, top_k=4)
        rows = [(ours, wanted)] if isinstance(ours[0], dict) else zip(ours, wanted, strict=True)
        for a, b in ((a, b) for mine, other in rows for a, b in zip(mine, other, strict=True)):
            assert list(a) == list(b) and abs(a["score"] - b["score"]) < 1e-5
            assert {k: a[k] for k in a if k != "score"} == {k: b[k] for k in b if k != "score"}
    assert model.fill(texts[0], 4) == found[0] and model.fill(texts, 4, batch_size=1) == found


def test_an_encoder_keeps_no_head_that_its_folder_lacks(made, tmp_path):
    """Sentence encoders often name the class that they were trained as; how a folder pools counts more."""
    folder, *_ = made(*MASKED["bert"])
    shutil.copytree(folder, tmp_path / "pooled")
    (tmp_path / "pooled" / "1_Pooling").mkdir()
    (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert cq.load(tmp_path / "pooled").head is None
    bert = made(*MASKED["bert"])[1].bert
    bert.save_pretrained(tmp_path / "bare")
    values = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(values | {"architectures": ["BertForMaskedLM"]}))
    model = cq.load(tmp_path / "bare")
    assert model.head is None and not model.config.lm_head


# --- sequence classifiers ---------------------------------------------------------------------------------------------


def test_decoders_classify_by_their_last_token_that_is_no_padding(made):
    _, reference, tokenizer, model = made(*DECODERS["qwen3"])
    padded = [np.array([2000, 3000, 0, 4000, 0, 0]), np.array([0, 0, 5000]), np.array([0, 0])]
    np.testing.assert_allclose(model.classify(padded), logits_of(reference, padded), atol=1e-4)
    np.testing.assert_allclose(model.classify(TEXTS), logits_of(reference, map(model.tokenize, TEXTS)), atol=1e-4)


def test_rank_over_a_decoder(made):
    _, reference, tokenizer, model = made(*DECODERS["qwen2"])
    with torch.no_grad():
        pairs = [model.tokenizer.encode("Who?", text).ids for text in TEXTS]
        wanted = np.array([reference(torch.tensor([ids])).logits[0, 0] for ids in pairs])
    found = model.rank("Who?", TEXTS)
    assert [row["corpus_id"] for row in found] == np.argsort(-wanted, kind="stable").tolist()
    np.testing.assert_allclose([row["score"] for row in found], 1 / (1 + np.exp(-np.sort(wanted)[::-1])), atol=1e-4)


def test_labels_that_may_hold_at_once(made):
    config = BertConfig(**BERT, num_labels=3, problem_type="multi_label_classification")
    _, reference, tokenizer, model = made(BertForSequenceClassification, config)
    theirs = pipeline("text-classification", model=reference, tokenizer=tokenizer, top_k=None)
    for row, text in zip(model.classify(TEXTS), TEXTS, strict=True):
        wanted = {one["label"]: one["score"] for one in theirs(text)[0]}
        np.testing.assert_allclose(row, [wanted[label] for label in model.config.labels], atol=1e-5)
        softmax = {one["label"]: one["score"] for one in theirs(text, function_to_apply="softmax")[0]}
        row = model.classify([text], function_to_apply="softmax")[0]
        np.testing.assert_allclose(row, [softmax[label] for label in model.config.labels], atol=1e-5)
    raw = model.classify(TEXTS, function_to_apply="none")
    np.testing.assert_allclose(raw, logits_of(reference, map(model.tokenize, TEXTS)), atol=1e-4)
    with pytest.raises(cq.CqError, match="function_to_apply: need"):
        model.classify(TEXTS, function_to_apply="relu")


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_each_head_answers_only_for_itself(made):
    tagger, answerer, masked = (made(*cases["bert"])[3] for cases in (TAGGERS, ANSWERERS, MASKED))
    for call in (
        lambda: masked.entities("a"),
        lambda: tagger.answer("a", "b"),
        lambda: answerer.fill("a [MASK]"),
        lambda: masked.generate("a"),
        lambda: tagger.classify(["a"]),
    ):
        with pytest.raises(cq.UnsupportedError, match="this bert model"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m[0].entities("a", "all"), "aggregation_strategy: need one of"),
        (lambda m: m[0].entities([1]), "entities: need a text"),
        (lambda m: m[0].entities(["a"], batch_size=0), "batch_size: need"),
        (lambda m: m[1].answer("a", " "), "need a context"),
        (lambda m: m[1].answer("a", "b", 0), "top_k: need"),
        (lambda m: m[1].answer("a", "b", max_answer_len=True), "max_answer_len: need"),
        (lambda m: m[1].answer("a " * 100, "b"), "leave the context no room"),
        (lambda m: m[1].answer(3, "b"), "text: need a str"),
        (lambda m: m[2].fill("no mask"), r"no mask token; the tokenizer's is '\[MASK\]'"),
        (lambda m: m[2].fill("[MASK]", WORDS + 1), "top_k: need"),
    ],
)
def test_arguments_are_checked(made, call, message):
    with pytest.raises(cq.CqError, match=message):
        call([made(*cases["bert"])[3] for cases in (TAGGERS, ANSWERERS, MASKED)])
