"""The tables of keys of the files that sentence-transformers writes, in the form of key_tables.py. Holds tables
only."""

_SAVED = "a record of who wrote the file"
_SPEED = "speed and memory of transformers' own code"

_BERT = {
    "honoured": {"max_seq_length": "the longest text", "do_lower_case": "texts are lowercased first"},
    "refused": {
        "transformer_task": ("other outputs", "feature-extraction", "sequence-classification"),
        "modality_config": (
            "images and sounds, and texts through a chat template",
            {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            {"text": {"method": "forward", "method_output_name": "logits"}},
            {"text": {"method": "forward", "method_output_name": "logits"}, "message": None},
        ),
        "module_output_name": ("other outputs", "token_embeddings", "scores"),
        "processing_kwargs": ("arguments of the tokenizer", {}),
        "query_expansion": "queries filled up with masks",
        "model_args": ("arguments of the model", {}),
        "model_kwargs": ("arguments of the model", {}),
        "tokenizer_args": ("arguments of the tokenizer", {}),
        "processor_kwargs": ("arguments of the tokenizer", {}),
        "config_args": ("changes of config.json", {}),
        "config_kwargs": ("changes of config.json", {}),
    },
    "irrelevant": {
        "unpad_inputs": _SPEED,
        "query_length": "only of encode_query",
        "document_length": "only of encode_document",
    },
}

_SENTENCE = {
    "honoured": {
        "prompts": "`embed(texts, prompt_name=…)`",
        "default_prompt_name": "the prompt where a call names none",
        "truncate_dim": "how many features of an embedding are kept",
        "activation_fn": "a cross-encoder's, before that in config.json",
        "__version__": "written before sentence-transformers 5.4: white space around texts is left out, as it did then",
    },
    "refused": {"model_type": ("other kinds of model", "SentenceTransformer", "CrossEncoder")},
    "irrelevant": {
        "similarity_fn_name": "cq gives embeddings",
        "requirements": _SAVED,
        "keep_in_fp32_modules": "cq computes in float32 what is not quantized",
    },
}

_MODULES = {
    "honoured": {
        "type": "Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout",
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
        "activation_function": "Tanh, Identity, ReLU, GELU, SiLU, Sigmoid; others are refused",
    },
    "refused": {
        "module_input_name": ("other inputs", "sentence_embedding"),
        "module_output_name": ("other outputs", "sentence_embedding"),
        "use_residual": ("a sum of input and output", False),
    },
}

_LAYER_NORM = {"honoured": {"dimension": "checked"}}

_NORMALIZE = {
    "refused": {
        "module_input_name": ("other inputs", "sentence_embedding"),
        "module_output_name": ("other outputs", "sentence_embedding"),
    }
}

SENTENCE_KEYS: dict[str, dict] = {
    "sentence_bert_config.json": _BERT,
    "config_sentence_transformers.json": _SENTENCE,
    "modules.json": _MODULES,
    "Pooling/config.json": _POOLING,
    "Dense/config.json": _DENSE,
    "LayerNorm/config.json": _LAYER_NORM,
    "Normalize/config.json": _NORMALIZE,
}
