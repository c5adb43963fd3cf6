"""The whole model, forward and in reverse over a packed batch, with fake quantization where its plan
has codes. Knows no losses and no optimizer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from .. import functions
from ..model import Config
from ..model.forms import Fixed, Form, PerHead, PerTensor, PerToken, Smoothed, Stretched, has_one_scale
from ..model.sites import BlockPart, Graph
from ..plan import Plan
from .attention import Attention, PositionBias, Sight, kind_of
from .batch import Packed
from .block import Block, kept_bytes
from .convolution import Convolution
from .fake import Exact, ExactHeads, Learned, LearnedWeight, Ranged, Resting, Stretching, WeightRange, first_scale
from .layers import Embedding, Linear, Norm, Rotary
from .parameters import Parameters, check_shapes
from .passes import dot_rows
from .reading import Fake, Reading
from .relative import RelativePositions

# With one scale for each weight: how many times as far as elsewhere scales move, and norms and biases: their gradients
# average more. MiniLM loses 6 % less after 100 steps than with 5 for scales, 3 % less after 600 than with 1 for the
# others (30: 2 %).
FASTER, VECTORS = 20, 100
# What blocks may keep of a pass for its reverse, in bytes. Where it would be more, each is computed anew for it.
MOST_KEPT = 1 << 29

AnyForm = TypeVar("AnyForm", bound=Form | PerHead)


class Network:
    """plan: where weights and activations are coded, and how; codes with fixed parameters begin at the plan's, or are
    found by moving averages. weights: canonical name → array (see Config.shapes), and biases, with what the plan folds
    into them; copied. learns: whether scales of weights and of fixed codes are learned (Esser et al. 2020) from where
    their extremes and the plan put them. dtype: float64 for checks of gradients. alike: whether rows of weights move in
    proportion to their size."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        weights: dict[str, np.ndarray],
        learns: bool = False,
        dtype: type = np.float32,
        alike: bool = False,
    ):
        self.config, self.plan, self.graph, self.learns = config, plan, Graph(config), learns
        self.forms, self.trunk = plan.sites(self.graph), [name for site in self.graph.trunk for name in site.readers]
        codings = [plan.layers[name].coding for name in self.trunk if plan.coded(name)]
        self.coarse = any(coding.granularity == "per_tensor" for coding in codings)  # one scale for a weight
        check_shapes(config, weights)
        self._zero_points: dict[str, np.ndarray] = {}
        sizes = self._row_sizes(weights) if alike else {}
        mean = functions.total(float(size.sum()) for size in sizes.values()) / max(1, sum(map(len, sizes.values())))
        scales = self._first_scales(weights, mean) if learns else {}
        vectors = VECTORS if scales and self.coarse else 1.0
        row_rates = {name: (size / mean).astype(np.float32) for name, size in sizes.items()}
        self.parameters = Parameters(weights, scales, vectors, dtype, row_rates)
        self.sites = {site: self._site(site, form) for site, form in self.forms.items()}
        self.linears = {name: self._linear(name) for name in self.trunk}
        norms = [name.removesuffix(".weight") for name in weights if name.endswith("norm.weight")]
        self.norms = {name: Norm(self.parameters, name, config.norm_eps, config.norm == "rms") for name in norms}
        self.bias = PositionBias.of(self.parameters, config)
        self.reading = Reading(plan, self.graph, self.sites, self.linears)
        self.blocks = self._blocks()
        self.embedding = Embedding(self.parameters, self._word(), config.position_offset, config.embedding_scale)
        self.observing, self.recomputes = True, False
        self.inputs: list[np.ndarray] = []  # of blocks that are computed anew

    # --- building -----------------------------------------------------------------------------------------------------

    def _weight_name(self, linear: str) -> str:
        return "embed.word" if linear == "head" and self.config.tied else f"{linear}.weight"

    def _learns(self, linear: str) -> bool:
        return self.learns and self.plan.coded(linear) and self.plan.layers[linear].coding.granularity != "per_group"

    def _row_sizes(self, weights: dict) -> dict[str, np.ndarray]:
        """The size of each row of the weights that are coded. After rotation and equalization rows differ a
        hundredfold; Adam's steps, of one size for all, move the small ones by many codes and the large ones by none."""
        names = dict.fromkeys(self._weight_name(name) for name in self.trunk if self.plan.coded(name))
        rows = {name: np.ascontiguousarray(weights[name]) for name in names}
        return {
            name: np.maximum(np.sqrt(dot_rows(w, w) / w.shape[1], dtype=np.float64), 1e-6) for name, w in rows.items()
        }

    def _first_scales(self, weights: dict, size: float) -> dict[str, tuple[np.ndarray, float]]:
        """Scales to learn, each with its unit step: a step moves a scale by as large a part of it as it moves a typical
        weight of the layer at hand, which is what Esser et al.'s gradient scale is for under plain SGD. size: of such a
        weight, where it is one for all layers; else 0."""
        scales, rates, faster = {}, {}, FASTER if self.coarse else 1
        for name in self.trunk:
            w = weights[self._weight_name(name)]
            rates[name] = faster / (size or max(float(np.sqrt(np.mean(np.square(w, dtype=np.float64)))), 1e-6))
            if self._learns(name):
                scale, self._zero_points[name] = first_scale(w, self.plan.layers[name].coding)
                scales[f"{name}.weight.scale"] = scale, rates[name]
        for site, form in self.forms.items():
            if isinstance(form, Fixed):
                part = site.rpartition(".")[0]
                near = [name for name in rates if name.startswith(part)]
                readers = self.graph.readers(site) or near
                scales[f"{site}.scale"] = np.array([form.scale]), min(rates[name] for name in readers)
        return scales

    def _site(self, site: str, form: Form | PerHead) -> Fake:
        if isinstance(form, PerHead):
            return ExactHeads(site, form.group_size)
        if isinstance(form, Stretched):
            return Stretching(site, form)
        if isinstance(form, Smoothed):
            return Resting(site, form)
        if isinstance(form, (PerToken, PerTensor)):
            return Exact(site, form)
        assert isinstance(form, Fixed), f"{site} is a site of codes"
        if not self.learns:
            return Ranged(site, form)
        name = f"{site}.scale"
        return Learned(site, form, self.parameters.values[name], partial(self.parameters.add, name))

    def _rotaries(self) -> list[Rotary | None]:
        """Of every block; those that turn alike share one."""
        c, made = self.config, {}
        result: list[Rotary | None] = []
        for layer in map(c.layer, range(c.num_layers)):
            kind = layer.rope_theta, layer.rope_scaling is None
            if layer.rope_theta is not None and kind not in made:
                made[kind] = Rotary(c.head_dim, c.turned, layer.rope_theta, layer.rope_scaling, c.head_hadamard)
            result.append(made.get(kind))
        return result

    def _blocks(self) -> list[Block]:
        convolution = Convolution.of(self.parameters, self.config, self.norms)
        parts = zip(self.graph.blocks, self._rotaries(), [convolution] + [None] * self.config.num_layers)
        return [
            Block(self.config, names, self.reading, self.norms, self._attention(i, names), rotary, beside)
            for i, (names, rotary, beside) in enumerate(parts)
        ]

    def _attention(self, i: int, block: BlockPart) -> Attention:
        c, kind = self.config, kind_of(self.forms.get(block.attention.query))
        relative = RelativePositions.of(self.parameters, c, f"{block.name}.attention")
        return kind(c.num_heads, c.num_kv_heads, c.head_dim, Sight.of(c, i), self.bias, relative)

    def _linear(self, name: str) -> Linear:
        layer = self.plan.layers[name]
        fake: WeightRange | None = None
        if self._learns(name):
            scale = self.parameters.values[f"{name}.weight.scale"]
            fake = LearnedWeight(name, layer.coding, scale, self._zero_points[name])
        elif self.plan.coded(name):
            fake = WeightRange(name, layer.coding)
        weight, fixed = self._weight_name(name), has_one_scale(layer.input)
        return Linear(self.parameters, weight, f"{name}.bias", fake, layer.bias, fixed)

    def _word(self) -> "Linear | WeightRange | None":
        """What codes the word table: a tied head whose codes it shares, ranges of its own, or nothing."""
        word = self.plan.word
        if not word.coded:
            return None
        if word.weight is None and "head" in self.linears:
            return self.linears["head"]
        return WeightRange("embed.word", word.weight or self.plan.layers["head"].coding)

    # --- what was learned ---------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Canonical name → a copy of the weight, float as it is trained."""
        return {name: array.copy() for name, array in self.parameters.values.items() if not name.endswith(".scale")}

    def trained_plan(self) -> Plan:
        """The plan with the parameters that training found: of fixed codes, and of weights where they are learned."""
        layers = dict(self.plan.layers)
        for name, linear in self.linears.items():
            layer = layers[name]
            if layer.input is not None:
                layer = replace(layer, input=self._trained_form(self.graph.reads[name], layer.input))
            if isinstance(linear.fake, LearnedWeight):
                layer = replace(layer, weight=replace(layer.coding, learned=linear.fake.params()))
            layers[name] = layer
        attention = dict(self.plan.attention)
        for block in self.graph.blocks:
            forms, names = attention.get(block.name), block.attention
            if forms is not None and not isinstance(forms, PerHead):
                query, key, value = forms
                attention[block.name] = (
                    self._trained_form(names.query, query),
                    self._trained_form(names.key, key),
                    self._trained_form(names.value, value),
                )
        return replace(self.plan, layers=layers, attention=attention)

    def _trained_form(self, site: str, form: AnyForm) -> AnyForm:
        """The form that the plan has at a site, with the parameters that training found where they are fixed."""
        fake = self.sites[site]
        if isinstance(form, Fixed) and isinstance(fake, (Ranged, Learned)):
            scale, zero_point = fake.params()
            return replace(form, scale=scale, zero_point=zero_point)
        return form

    def learned_ranges(self) -> Iterator[tuple[Learned | LearnedWeight, Callable[[], None]]]:
        """What has a learned range, block by block, and what to call when that was changed."""
        for block in ("embed.", *(f"layers.{i}." for i in range(self.config.num_layers)), "head"):
            yield from (
                (site, lambda: None)
                for name, site in self.sites.items()
                if name.startswith(block) and isinstance(site, Learned)
            )
            yield from (
                (linear.fake, linear.refresh)
                for name, linear in self.linears.items()
                if name.startswith(block) and isinstance(linear.fake, LearnedWeight)
            )

    # --- running ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """To be called after weights have changed: their codes are made anew."""
        for linear in self.linears.values():
            linear.refresh()

    def observe(self, on: bool) -> None:
        """Whether moving averages move."""
        self.observing = on
        self._let_observe(on)

    def _let_observe(self, on: bool) -> None:
        for site in self.sites.values():
            if isinstance(site, Ranged):
                site.observing = on

    def settle(self) -> None:
        """Completes the gradients of one step: straight through the rounding of learned weights, zeros where none
        came."""
        self.parameters.settle()
        for name, linear in self.linears.items():
            if isinstance(linear.fake, LearnedWeight):
                gradient = linear.fake.backward(linear.weight, self.parameters.gradients[linear.name])
                self.parameters.gradients[f"{name}.weight.scale"][...] = gradient
                if self.recomputes:
                    linear.refresh()

    def forward(self, batch: Packed) -> np.ndarray:
        """Final hidden states (tokens, hidden). Where blocks would keep more than MOST_KEPT for the reverse, only their
        inputs stay, and it computes one block after another anew (Chen et al. 2016, arXiv:1604.06174), to the same
        bits."""
        self.batch, self.inputs = batch, []
        self.recomputes = kept_bytes(self.config, batch, self.parameters.flat.itemsize) > MOST_KEPT
        x = self.embedding.forward(batch)
        if self.config.starts_normed:
            x = self.norms["embed.norm"].forward(x)
        if self.config.embedding_width is not None:
            (x,) = self.reading.read("embed.input", x)
        for block in self.blocks:
            y = block.forward(x, batch)
            if self.recomputes:
                self.inputs.append(x)
                block.forget()
            x = y
        return self.norms["final_norm"].forward(x) if self.config.ends_normed else x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """(tokens, hidden) → (tokens, vocab), after `forward`."""
        scores, cap = self.reading.read("head.input", hidden)[0], self.config.logits_cap
        if self.config.logits_scale != 1:
            scores *= np.asarray(self.config.logits_scale, scores.dtype)
        if cap is not None:
            self.tanh = functions.tanh(scores / np.asarray(cap, scores.dtype))
            scores = self.tanh * np.asarray(cap, scores.dtype)
        return scores

    def _logits_back(self, g: np.ndarray) -> np.ndarray:
        if self.config.logits_cap is not None:
            g = g * (1 - self.tanh * self.tanh)
        if self.config.logits_scale != 1:
            g = g * np.asarray(self.config.logits_scale, g.dtype)
        return self.reading.read_back("head.input", [g])

    def backward(self, hidden: np.ndarray | None = None, logits: np.ndarray | None = None) -> None:
        """From the gradients of what `forward` and `logits` gave, either or both, to those of the parameters. May write
        to `hidden`."""
        g = hidden
        if logits is not None:
            g = self._logits_back(logits)
            if hidden is not None:
                g += hidden
        assert g is not None, "either gradient must be given"
        if self.config.ends_normed:
            g = self.norms["final_norm"].backward(g)
        for block in reversed(self.blocks):
            g = self._again_and_back(block, g) if self.recomputes else block.backward(g)
        if self.config.embedding_width is not None:
            g = self.reading.read_back("embed.input", [g])
        if self.config.starts_normed:
            g = self.norms["embed.norm"].backward(g)
        self.embedding.backward(g)

    def _again_and_back(self, block: Block, g: np.ndarray) -> np.ndarray:
        """A block's reverse after another forward, in which ranges rest: they have moved by what it sees already."""
        self._let_observe(False)
        block.forward(self.inputs.pop(), self.batch)
        self._let_observe(self.observing)
        g = block.backward(g)
        block.forget()
        return g
