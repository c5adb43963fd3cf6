"""Late interaction against sentence-transformers' MultiVectorEncoder, on small random models with a real tokenizer, as
it, PyLate and Stanford's ColBERT write them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import BertConfig, BertModel, BertTokenizer

import cq

DOCUMENTS = ["The kumquats, of Tennessee!", "ok.", "A longer text that goes on and on, and " * 9, "naïve 日本 🙂"]
QUERIES = ["who?", "where is the transcontinental railway station that goes on and on and on and on?"]
TOKENS = "token_embeddings"


def dense(inputs, outputs, **more):
    module = Dense(inputs, outputs, activation_function=torch.nn.Identity(), module_input_name=TOKENS, **more)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return module


@pytest.fixture(scope="module")
def bert(tmp_path_factory, minilm_folder):
    """Folder of a random BERT with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    sizes = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
    torch.manual_seed(5)
    model = BertModel(BertConfig(vocab_size=30522, max_position_embeddings=120, **sizes))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("Norm.weight" in name), 0.2)
    model.save_pretrained(folder)
    BertTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
    return folder


_EXPANSIONS = {
    "masks unseen": dict(strategy="fixed", length=16),
    "masks seen": dict(strategy="fixed", length=16, attend=True, token="[PAD]"),
    "at least": dict(strategy="min", length=12),
    "none": None,
}


@pytest.fixture(scope="module")
def saved(bert, tmp_path_factory):
    """saved(name) → (cq's model, sentence-transformers')."""
    done = {}

    def make(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("late") / "model"
            torch.manual_seed(7)
            lengths = {} if name == "masks seen" else dict(document_length=30)
            transformer = Transformer(str(bert), query_expansion=_EXPANSIONS[name], **lengths)
            chain = [dense(40, 24, bias=False)]
            if name == "at least":
                chain = [dense(40, 40, use_residual=True), dense(40, 20, use_residual=True)]
            tasks = ["query", "document"] if name == "masks seen" else None
            mask = MultiVectorMask(list(".,!?"), skiplist_tasks=tasks)
            tail = [mask, Normalize(TOKENS)] if name != "none" else [MultiVectorMask()]
            prompts = {} if name == "none" else {"query": "find: ", "document": "[unused1] "}
            kind = "meanmaxsim" if name == "none" else None
            made = MultiVectorEncoder(
                modules=[transformer, *chain, *tail], prompts=prompts, similarity_fn_name=kind, device="cpu"
            )
            made.save_pretrained(str(folder))
            done[name] = cq.load(folder), MultiVectorEncoder(str(folder), device="cpu")
        return done[name]

    return make


def both(ours, theirs):
    queries, documents = ours.embed_tokens(QUERIES, query=True), ours.embed_tokens(DOCUMENTS)
    wanted = theirs.encode_query(QUERIES), theirs.encode_document(DOCUMENTS)
    for found, other in zip((queries, documents), wanted, strict=True):
        for a, b in zip(found, other, strict=True):
            assert a.dtype == np.float32 and a.shape == tuple(b.shape)
            np.testing.assert_allclose(a, b.numpy(), atol=2e-5 * max(1, b.abs().max()))
    np.testing.assert_allclose(ours.similarity(queries, documents), theirs.similarity(*wanted), rtol=1e-4)
    return queries, documents


@pytest.mark.parametrize("name", _EXPANSIONS)
def test_vectors_are_those_of_sentence_transformers(saved, name):
    ours, theirs = saved(name)
    queries, documents = both(ours, theirs)
    for i, text in enumerate(QUERIES):
        assert np.array_equal(ours.embed_tokens(text, query=True), queries[i])
    assert all(map(np.array_equal, ours.embed_tokens(DOCUMENTS, batch_size=1), documents))
    ranked = ours.rank(QUERIES[0], DOCUMENTS)
    scores = ours.similarity(queries[0], documents)[0]
    assert [row["corpus_id"] for row in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [row["score"] for row in ranked] == sorted(scores.tolist(), reverse=True)


def pylate(bert, folder, **said):
    """As PyLate before sentence-transformers had late interaction."""
    shutil.copytree(bert, folder)
    (folder / "1_Dense").mkdir()
    torch.manual_seed(8)
    weight = torch.randn(24, 40).numpy()
    save_file({"linear.weight": weight}, folder / "1_Dense" / "model.safetensors")
    values = {"in_features": 40, "out_features": 24, "bias": False}
    values["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "1_Dense" / "config.json").write_text(json.dumps(values))
    kinds = ("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "ColBERT"} | said))
    return folder


@pytest.mark.parametrize(
    "said",
    [
        dict(query_prefix="[unused0]", document_prefix="[unused1]", query_length=14, document_length=20),
        dict(query_prefix="[Q] ", document_prefix="[D] ", attend_to_expansion_tokens=True, skiplist_words=["the"]),
        dict(query_prefix="", document_prefix="", do_query_expansion=False, query_length=9),
    ],
    ids=lambda said: said["query_prefix"] or "none",
)
def test_pylate(bert, tmp_path, said):
    folder = pylate(bert, tmp_path / "model", **said)
    both(cq.load(folder), MultiVectorEncoder(str(folder), device="cpu"))


def test_modules_without_settings_need_no_file(bert, tmp_path):
    """Earlier releases of sentence-transformers write none for Normalize."""
    plain, folder = pylate(bert, tmp_path / "plain"), pylate(bert, tmp_path / "model")
    (folder / "2_Normalize").mkdir()
    modules = json.loads((folder / "modules.json").read_text())
    modules += [{"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert cq.load(folder).config == cq.load(plain).config


@pytest.mark.parametrize("metadata", [None, dict(query_maxlen=13, doc_maxlen=25, attend_to_mask_tokens=True, dim=24)])
def test_stanford(bert, tmp_path, metadata):
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    width = 24 if metadata else 128
    tensors = {f"bert.{name}": array for name, array in load_file(folder / "model.safetensors").items()}
    tensors["linear.weight"] = np.random.default_rng(3).standard_normal((width, 40)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["HF_ColBERT"]}))
    if metadata:
        (folder / "artifact.metadata").write_text(json.dumps(metadata | {"lr": 3e-6, "similarity": "cosine"}))
    both(cq.load(folder), MultiVectorEncoder(str(folder), device="cpu"))


@pytest.mark.parametrize(
    "strategy", [cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.QAT(steps=2, batch_size=2)], ids=lambda s: s.name
)
def test_every_strategy(saved, tmp_path, strategy):
    model, _ = saved("masks unseen")
    needs = isinstance(strategy, (cq.Static, cq.QAT))
    quantized = cq.quantize(model, strategy, DOCUMENTS * 4 if needs else None)
    assert dict(quantized.linears())["head"].runs_in == quantized.strategy.name
    for kind in (False, True):
        texts = QUERIES if kind else DOCUMENTS
        exact, ours = (np.concatenate(m.embed_tokens(texts, query=kind)) for m in (model, quantized))
        assert 10 * np.log10(np.square(exact).sum() / np.square(exact - ours).sum()) > (8 if needs else 20)
    cq.save(quantized, tmp_path / "q.safetensors")
    again = cq.load(tmp_path / "q.safetensors")
    assert again.config == model.config
    assert all(
        map(np.array_equal, again.embed_tokens(QUERIES, query=True), quantized.embed_tokens(QUERIES, query=True))
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("1_Dense/config.json", dict(activation_function="torch.nn.modules.activation.Tanh")), "of tokens is not"),
        (("1_Dense/config.json", dict(module_input_name="sentence_embedding")), "not implemented for tokens"),
        (("1_Dense/config.json", dict(in_features=41)), "in_features 41 is not 40"),
        (("config_sentence_transformers.json", dict(similarity_fn_name="xtr")), "similarity_fn_name 'xtr'"),
        (("config_sentence_transformers.json", dict(query_expansion={"strategy": "all"})), "query_expansion"),
        (("config_sentence_transformers.json", dict(skiplist_words=[1])), "skiplist_words must be a list of texts"),
    ],
)
def test_what_is_refused(bert, tmp_path, change, error):
    folder = pylate(bert, tmp_path / "model", query_prefix="", document_prefix="")
    file, more = change
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | more))
    with pytest.raises(cq.CqError, match=error):
        cq.load(folder)


def test_an_observer_sees_every_site_of_a_query(saved):
    model, _ = saved("masks unseen")
    seen = set()
    model.observe([model._marked(QUERIES[0], True)], lambda site, _: seen.add(site))
    assert set(model.graph.sites) <= seen


def test_arguments_are_checked(saved, tiny_encoder):
    model, _ = saved("masks unseen")
    with pytest.raises(cq.UnsupportedError, match="none of late interaction"):
        cq.load(tiny_encoder).embed_tokens("a")
    with pytest.raises(cq.UnsupportedError, match="says no pooling"):
        model.embed("a")
    with pytest.raises(cq.CqError, match="need a text, or an iterable"):
        model.embed_tokens([3])
    with pytest.raises(cq.CqError, match=r"documents\[0\]: need a float32 array"):
        model.similarity(model.embed_tokens("a"), [np.ones((2, 3), np.float32)])
    for wrong in (None, 3, np.float32(3), np.ones(24, np.float32), [np.array(1.0)], np.full((2, 24), "a"), "a"):
        with pytest.raises(cq.CqError, match=r"queries\[0\]: need a float32 array"):
            model.similarity(wrong, model.embed_tokens("a"))
    with pytest.raises(cq.FormatError, match="multi_vector"):
        cq.Config.from_dict(model.config.to_dict() | {"multi_vector": {"features": 24}})
