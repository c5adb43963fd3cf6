"""Tokenizers of folders beside transformers' own: what tokenizer_config.json and the files around it change."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from cq.errors import FormatError, UnsupportedError
from cq.formats.huggingface import read_folder
from cq.formats.tokenizer_files import read_tokenizer, read_tokenizer_settings

WORDS = {word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b A É é e ab 中 文 ##b ##文 中文".split())}
PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6}
TEXT = "A é ab É 中文 [MASK] zz"


def word_pieces(**normalizer) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(WORDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def pieces(begins: bool) -> Tokenizer:
    model = models.BPE(PIECES, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def put(folder, tokenizer: Tokenizer | None, family: str, **files):
    """A folder of these; files: name, without its ending, → JSON."""
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return folder


def ours(folder, family: str) -> Tokenizer:
    return read_tokenizer(folder, settings=read_tokenizer_settings(folder, family))


@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", None, "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"strip_accents": False},
        {"strip_accents": True, "do_lower_case": False},
        {"tokenize_chinese_chars": False},
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
def test_normalizers_are_as_the_class_makes_them(tmp_path, kind, said, lowercase):
    config = said | ({} if kind is None else {"tokenizer_class": kind})
    folder = put(tmp_path, word_pieces(lowercase=lowercase), "bert", tokenizer_config=config)
    assert ours(folder, "bert").encode(TEXT).ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids


@pytest.mark.parametrize("said", [None, {}, {"do_lower_case": False}, {"tokenizer_class": "BertTokenizer"}])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_vocabulary_alone_is_a_tokenizer(tmp_path, said, family):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    folder = put(tmp_path, None, family, **({} if said is None else {"tokenizer_config": said}))
    found, wanted = ours(folder, family), AutoTokenizer.from_pretrained(folder)
    assert found.encode(TEXT).ids == wanted(TEXT).input_ids
    pair = found.encode("a b", "e")
    assert (pair.ids, pair.type_ids) == (wanted("a b", "e").input_ids, wanted("a b", "e").token_type_ids)
    assert found.decode(found.encode("ab a").ids) == wanted.decode(wanted("ab a").input_ids, skip_special_tokens=True)


def test_a_vocabulary_without_its_special_words_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(FormatError, match=r"vocab.txt: no word '\[UNK\]'"):
        ours(put(tmp_path, None, "bert"), "bert")


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(
    "said, around",
    [
        ({}, None),
        ({"add_bos_token": True}, (True, False)),
        ({"add_bos_token": False}, (False, False)),
        ({"add_eos_token": True}, (None, True)),
        ({"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"add_bos_token": False, "add_eos_token": True}, (False, True)),
        ({"add_bos_token": False, "add_eos_token": True, "eos_token": None}, (False, False)),
    ],
)
def test_texts_begin_and_end_as_the_tokenizers_files_say(tmp_path, begins, said, around):
    """Of transformers 4 for all; transformers 5 reads the keys past beside a tokenizer.json, and so would embed with
    another token than the model was trained with."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    folder = put(tmp_path, pieces(begins), "mistral", tokenizer_config=named | said)
    first, last = around or (begins, False)
    first = begins if first is None else first
    wanted = [1] * first + [6, 5] + [2] * last
    assert ours(folder, "mistral").encode("ab").ids == wanted
    if around is None:
        assert AutoTokenizer.from_pretrained(folder)("ab").input_ids == wanted


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"7": {"content": "<x>", "special": True, "normalized": False}}}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": {"7": {"content": "<x>", "lstrip": True}, "8": {"content": "yy"}}
            }
        },
        {"tokenizer_config": {"extra_special_tokens": ["<x>"]}},
        {"tokenizer_config": {"additional_special_tokens": ["<x>", "yy"]}},
        {"tokenizer_config": {"pad_token": "<x>"}},
        {"tokenizer_config": {}, "special_tokens_map": {"pad_token": {"content": "<x>", "lstrip": True}}},
        {"tokenizer_config": {"pad_token": "yy"}, "special_tokens_map": {"pad_token": "<x>"}},
        {"tokenizer_config": {}, "added_tokens": {"<x>": 7, "yy": 8}},
    ],
)
def test_tokens_that_tokenizer_json_lacks_are_added(tmp_path, files):
    folder = put(tmp_path, pieces(True), "mistral", **files)
    found, wanted = ours(folder, "mistral"), AutoTokenizer.from_pretrained(folder)
    for text in ("a<x> b", "a <x>yyb", "yy"):
        assert found.encode(text).ids == wanted(text).input_ids
        ids = found.encode(text).ids
        assert found.decode(ids) == wanted.decode(ids, skip_special_tokens=True)


def test_an_id_that_is_anothers_is_named(tmp_path):
    folder = put(tmp_path, pieces(True), "mistral", tokenizer_config={}, added_tokens={"<x>": 9})
    with pytest.raises(FormatError, match="'<x>' has id 9, in .*tokenizer.json it is 7"):
        ours(folder, "mistral")


@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level_texts_begin_with_a_space_where_the_files_say(tmp_path, prefix):
    tokenizer = Tokenizer(models.BPE({"Ġ": 0, "a": 1, "Ġa": 2}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(not prefix)
    folder = put(
        tmp_path, tokenizer, "gpt2", tokenizer_config={"add_prefix_space": prefix, "tokenizer_class": "GPT2Tokenizer"}
    )
    ids = ours(folder, "gpt2").encode("a a").ids
    assert ids == AutoTokenizer.from_pretrained(folder)("a a").input_ids == ([2, 2] if prefix else [1, 2])


def unigram(*steps, scheme: str = "always") -> Tokenizer:
    """As ALBERT's and XLM-R's files have it."""
    words = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", "a", "A", "é", "▁a", "▁A"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), *steps])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


STRIPPED = (normalizers.NFKD(), normalizers.StripAccents())


@pytest.mark.parametrize(
    ("kind", "tokenizer", "said", "key"),
    [
        ("AlbertTokenizer", unigram(*STRIPPED, normalizers.Lowercase()), {"do_lower_case": False}, "do_lower_case"),
        ("AlbertTokenizer", unigram(*STRIPPED), {}, "do_lower_case"),
        ("AlbertTokenizer", unigram(*STRIPPED, normalizers.Lowercase()), {"keep_accents": True}, "keep_accents"),
        ("XLMRobertaTokenizer", unigram(), {"add_prefix_space": False}, "add_prefix_space"),
        ("DebertaV2Tokenizer", unigram(normalizers.Lowercase()), {}, "do_lower_case"),
        ("DebertaV2Tokenizer", unigram(), {"split_by_punct": True}, "split_by_punct"),
    ],
)
def test_steps_that_the_class_would_make_otherwise_are_refused(tmp_path, kind, tokenizer, said, key):
    text = "A é, a"
    family = {"AlbertTokenizer": "albert", "DebertaV2Tokenizer": "deberta-v2"}.get(kind, "xlm-roberta")
    folder = put(tmp_path, tokenizer, family, tokenizer_config=said | {"tokenizer_class": kind})
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids != tokenizer.encode(text).ids
    with pytest.raises(UnsupportedError, match=f"tokenizer_config.json: {key} (true|false) is not implemented where"):
        ours(folder, family)


@pytest.mark.parametrize(
    "said", [{}, {"do_lower_case": True, "keep_accents": False, "add_prefix_space": True}], ids=["absent", "said"]
)
def test_steps_that_are_the_classs_own_are_taken(tmp_path, said):
    tokenizer = unigram(*STRIPPED, normalizers.Lowercase())
    folder = put(tmp_path, tokenizer, "albert", tokenizer_config=said | {"tokenizer_class": "AlbertTokenizer"})
    assert ours(folder, "albert").encode("A é a").ids == AutoTokenizer.from_pretrained(folder)("A é a").input_ids


def test_names_of_tokens_are_those_that_templates_see(llama):
    def tokens(**said):
        (llama / "tokenizer_config.json").write_text(json.dumps(said))
        return read_folder(llama)[0].special_tokens

    assert read_folder(llama)[0].special_tokens is None
    assert tokens(bos_token="<s>", eos_token={"content": "</s>", "lstrip": False}) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    assert tokens(bos_token=None, eos_token="<end>") == {"eos_token": "<end>"}
    assert tokens(bos_token=None, tokenizer_class="Qwen2TokenizerFast", eos_token="<|im_end|>") == {
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    assert tokens(extra_special_tokens={"image_token": "<image>"}, boi_token="<boi>") == {
        "image_token": "<image>",
        "boi_token": "<boi>",
    }
