"""The tables of keys of the files that sentence-transformers writes, in the form of key_tables.py. Holds tables
only."""

_SAVED = "a record of who wrote the file"
_SPEED = "speed and memory of transformers' own code"

_BERT = {
    "honoured": {
        "max_seq_length": "the longest text",
        "do_lower_case": "texts are lowercased first",
        "query_expansion": "of late interaction: how queries are filled up with masks",
        "query_length": "of late interaction: the longest query",
        "document_length": "of late interaction: the longest document",
    },
    "refused": {
        "transformer_task": ("other outputs", "feature-extraction", "sequence-classification", "text-generation"),
        "modality_config": (
            "images and sounds, and texts through a chat template",
            {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            {"text": {"method": "forward", "method_output_name": "logits"}},
            {"text": {"method": "forward", "method_output_name": "logits"}, "message": None},
            {
                "text": {"method": "forward", "method_output_name": "logits"},
                "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
            },
        ),
        "module_output_name": ("other outputs", "token_embeddings", "scores", "causal_logits"),
        "processing_kwargs": ("arguments of the tokenizer", {}),
        "model_args": ("arguments of the model", {}),
        "model_kwargs": ("arguments of the model", {}),
        "tokenizer_args": ("arguments of the tokenizer", {}),
        "processor_kwargs": ("arguments of the tokenizer", {}),
        "config_args": ("changes of config.json", {}),
        "config_kwargs": ("changes of config.json", {}),
    },
    "irrelevant": {"unpad_inputs": _SPEED},
}

_SENTENCE = {
    "honoured": {
        "prompts": "`embed(texts, prompt_name=…)`",
        "default_prompt_name": "the prompt where a call names none",
        "truncate_dim": "how many features of an embedding are kept",
        "similarity_fn_name": "of late interaction: maxsim or meanmaxsim; of others cq gives embeddings",
        "query_prefix": "PyLate's: a token before queries",
        "document_prefix": "PyLate's: a token before documents",
        "query_length": "PyLate's: tokens of a query that is filled up",
        "document_length": "PyLate's: the longest document",
        "do_query_expansion": "PyLate's: whether queries are filled up with masks",
        "attend_to_expansion_tokens": "PyLate's: whether tokens see those masks",
        "skiplist_words": "PyLate's: words whose tokens documents leave out; absent: punctuation",
        "activation_fn": "a cross-encoder's, before that in config.json",
        "__version__": "written before sentence-transformers 5.4: white space around texts is left out, as it did then",
    },
    "refused": {
        "model_type": ("other kinds of model", "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder", "ColBERT")
    },
    "irrelevant": {"requirements": _SAVED, "keep_in_fp32_modules": "cq computes in float32 what is not quantized"},
}

_MODULES = {
    "honoured": {
        "type": "Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout, MultiVectorMask, LogitScore",
        "path": "the module's folder, inside the model's",
    },
    "refused": {"kwargs": ("arguments of a module", [], {})},
    "irrelevant": {"idx": "the list has an order of its own", "name": ""},
}

_POOLING = {
    "honoured": {
        "pooling_mode": "one or several, joined in this order",
        "pooling_mode_cls_token": "one flag per mode, as written before sentence-transformers 5.4",
        "pooling_mode_max_tokens": "",
        "pooling_mode_mean_tokens": "",
        "pooling_mode_mean_sqrt_len_tokens": "",
        "pooling_mode_weightedmean_tokens": "",
        "pooling_mode_lasttoken": "",
        "include_prompt": "whether a prompt's tokens are pooled",
        "embedding_dimension": "must be hidden_size",
        "word_embedding_dimension": "the same",
    }
}

_DENSE = {
    "honoured": {
        "in_features": "checked",
        "out_features": "",
        "bias": "",
        "activation_function": "Tanh, Identity, ReLU, GELU, SiLU, Sigmoid; of tokens Identity; others are refused",
        "module_input_name": "sentence_embedding after Pooling, token_embeddings of late interaction",
        "module_output_name": "the same",
        "use_residual": "of late interaction; true is refused after Pooling",
    }
}

_LAYER_NORM = {"honoured": {"dimension": "checked"}}

_NORMALIZE = {
    "honoured": {
        "module_input_name": "sentence_embedding after Pooling, token_embeddings of late interaction",
        "module_output_name": "the same",
    }
}

_MASK = {
    "honoured": {
        "skiplist_words": "words whose tokens are left out",
        "skiplist_tasks": "of documents, or of queries too",
    },
    "refused": {"keep_only_token_ids": "of images"},
}

_LOGIT_SCORE = {
    "honoured": {
        "true_token_id": "the token whose logit is a pair's score",
        "false_token_id": "the token whose logit is taken from it",
    },
    "refused": {"module_input_name": ("other inputs", "causal_logits")},
}

_ARTIFACT = {
    "honoured": {
        "dim": "features of a vector",
        "query_token_id": "a token before queries",
        "doc_token_id": "a token before documents",
        "query_maxlen": "tokens of a query, which is filled up",
        "doc_maxlen": "the longest document",
        "attend_to_mask_tokens": "whether tokens see the masks that fill up",
        "mask_punctuation": "whether documents leave punctuation out",
    },
    "refused": {"similarity": ("other distances", "cosine")},
    "irrelevant": {"*": "of training and of indexes"},
}

SENTENCE_KEYS: dict[str, dict] = {
    "sentence_bert_config.json": _BERT,
    "config_sentence_transformers.json": _SENTENCE,
    "modules.json": _MODULES,
    "Pooling/config.json": _POOLING,
    "Dense/config.json": _DENSE,
    "LayerNorm/config.json": _LAYER_NORM,
    "Normalize/config.json": _NORMALIZE,
    "MultiVectorMask/config.json": _MASK,
    "LogitScore/config.json": _LOGIT_SCORE,
    "artifact.metadata": _ARTIFACT,
}
