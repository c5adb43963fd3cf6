"""What the tests of exported graphs share: strategies, and how near a graph must come to the model it was made of."""

import numpy as np

import cq

SCHEME = cq.Scheme
PLAIN = SCHEME(attention="float32")
TEXTBOOK = SCHEME.textbook()
ASYMMETRIC = SCHEME(weight_symmetric=False, attention="float32")
STRATEGIES = {
    "float32": None,
    "weight-only": cq.WeightOnly(),
    "weight-only groups": cq.WeightOnly(SCHEME(weight_granularity="per_group", group_size=16)),
    "weight-only affine groups": cq.WeightOnly(
        SCHEME(weight_granularity="per_group", group_size=16, weight_symmetric=False)
    ),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "dynamic": cq.Dynamic(PLAIN),
    "dynamic affine weights": cq.Dynamic(ASYMMETRIC),
    "dynamic symmetric": cq.Dynamic(
        SCHEME(activation_dtype="int8", activation_symmetric=True, attention="float32", bias="int8")
    ),
    "dynamic int8": cq.Dynamic(SCHEME(activation_dtype="int8", attention="float32")),
    "dynamic per tensor": cq.Dynamic(SCHEME(activation_granularity="per_tensor", attention="float32")),
    "dynamic textbook": cq.Dynamic(SCHEME(**vars(TEXTBOOK) | {"attention": "float32"})),
    "static": cq.Static(),
    "static plain": cq.Static(PLAIN, smooth=False, correct_bias=False),
    "static affine weights": cq.Static(SCHEME(weight_symmetric=False)),
    "static symmetric": cq.Static(SCHEME(activation_dtype="int8", activation_symmetric=True)),
    "static symmetric plain": cq.Static(
        SCHEME(activation_dtype="int8", activation_symmetric=True, attention="float32")
    ),
    "static textbook plain": cq.Static(SCHEME(**vars(TEXTBOOK) | {"attention": "float32"}), observer="minmax"),
    "static textbook": cq.Static(TEXTBOOK, observer="minmax"),
    "static float bias": cq.Static(SCHEME(bias="float32")),
    "static, some in float32": cq.Static(PLAIN, exclude=("*.up", "layers.0.attention.value")),
    "static stream": cq.Static(residual="int8"),
    "static stretched": cq.Static(stretch=True),
    "static best": cq.Static(effort="best"),
    "mix": cq.Mixed((("*.ffn.down", cq.WeightOnly()), ("layers.0.*", cq.Dynamic(PLAIN)), ("*", cq.Static()))),
}


def error(found: list[np.ndarray], own: list[np.ndarray]) -> float:
    """Relative, of all arrays together."""
    found, own = np.concatenate(found), np.concatenate(own)
    return float(np.linalg.norm(found - own) / np.linalg.norm(own))


def outputs(model: cq.Transformer, tokens: list) -> list[np.ndarray]:
    return model.forward(tokens) if model.head is None else model.logits(tokens)


def check(exported, plain: cq.Transformer, model: cq.Transformer, tokens: list) -> None:
    """The graph of `model`, made of `plain`, differs from it by float32's roundings; where activations are in codes by
    the few that these turn, far less than codes cost. Static int8 attention has more of them: cq's exponentials are a
    coarse polynomial's."""
    graph, own = exported(model), outputs(model, tokens)
    found = graph.rows(tokens, "last_hidden_state" if model.head is None else "logits")
    lost = error(own, outputs(plain, tokens)) if coded(model) else 1e-4
    assert error(found, own) < lost / (1 if model.plan and model.plan.attention else 10)


def coded(model: cq.Transformer) -> bool:
    """Whether activations are in codes."""
    return model.plan is not None and any(layer.input is not None for layer in model.plan.layers.values())


def quantized(model: cq.Transformer, name: str, tokens: list) -> cq.Transformer:
    strategy = STRATEGIES[name]
    needs = isinstance(strategy, (cq.Static, cq.Mixed))
    return model if strategy is None else cq.quantize(model, strategy, tokens if needs else None)
