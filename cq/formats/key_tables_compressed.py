"""The tables of keys of `quantization_config` as compressed-tensors writes it, in the form of key_tables.py. Holds
tables only."""

_LOADING = "how transformers loads it"
_SAVED = "a record of who wrote the file"
_FOUND = "how the numbers were found; they are in the file"

COMPRESSED_KEYS: dict[str, dict[str, dict]] = {
    "quantization_config": {
        "honoured": {
            "quant_method": "compressed-tensors; others are refused",
            "format": "int-quantized, naive-quantized, pack-quantized; mixed-precision where groups say their own",
            "config_groups": "which layers are in which codes",
            "ignore": "names, re: patterns and classes of layers that stay in float32",
            "quantization_status": "compressed; with any other, weights are not in codes",
            "sparsity_config": "empty, or of the format dense; others are refused",
        },
        "refused": {
            "kv_cache_scheme": "keys and values kept in codes",
            "transform_config": ("rotations beside the weights", {}),
            "moe_sparsity_config": "experts left out",
        },
        "irrelevant": {
            "version": _SAVED,
            "global_compression_ratio": _SAVED,
            "run_compressed": _LOADING,
            "dequantize": _LOADING,
            "use_optimized_inference": _LOADING,
        },
    },
    "config_groups": {
        "honoured": {
            "targets": "names, re: patterns (without look-arounds and references), the classes Linear and Embedding",
            "weights": "",
            "input_activations": "null: float32, as WeightOnly",
            "format": "of this group's layers",
        },
        "refused": {"output_activations": "results in codes"},
    },
    "weights and input_activations": {
        "honoured": {
            "symmetric": "",
            "strategy": "of weights tensor, channel, group; of activations token, tensor",
            "group_size": "of strategy group: a multiple of 4 that divides the inputs; without activations in codes",
            "dynamic": "of activations: true as Dynamic, false as Static; of weights false",
        },
        "refused": {
            "num_bits": ("codes of other widths", 8),
            "type": ("floating-point codes", "int"),
            "block_structure": "a scale for each block",
            "actorder": ("groups of inputs that are not neighbours", "weight", "static", False),
        },
        "irrelevant": {
            "observer": _FOUND,
            "observer_kwargs": _FOUND,
            "scale_dtype": "the file's own dtype counts",
            "zp_dtype": "the file's own dtype counts",
        },
    },
}
COMPRESSED_TITLES = {
    "quantization_config": "Of config.json, where its method is compressed-tensors; read in folders.",
    "config_groups": "Of each of quantization_config's groups.",
    "weights and input_activations": "Of a group.",
}
