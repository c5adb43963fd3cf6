"""The graph of a configuration is the one that the model runs, and the only one that is written down."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

import cq
from cq.model.sites import WORK

_STATES = dict(pooling=None, normalize=False)  # of an encoder with a head
_AFTER = dict(norm_first=False, norm_outputs=True)  # norms of what parts give, and of the whole sum
_LABELS = dict(labels=("a", "b"))
GRAPHS = {  # what a configuration begins with, and what is changed
    "bert": ("bert", {}),
    "projected": ("bert", dict(embedding_width=24)),
    "embedding norm": ("bert", dict(norm_first=True, embedding_norm=True)),
    "masked": ("bert", _STATES | dict(lm_head=True, tied=True, head_transform="gelu")),
    "tokens' labels": ("bert", _STATES | _LABELS | dict(token_head="labels")),
    "classifier": ("bert", _STATES | _LABELS | dict(classifier="tanh")),
    "linear classifier": ("bert", _STATES | _LABELS | dict(classifier="linear")),
    "llama": ("llama", {}),
    "norms on both sides": ("llama", dict(norm_outputs=True)),
    "norms after": ("llama", _AFTER),
    "norms after, tokens' labels": ("llama", _AFTER | _LABELS | dict(token_head="labels", lm_head=False, tied=False)),
    "parallel": ("llama", dict(norm="layer", parallel=True)),
}


@pytest.fixture(params=GRAPHS)
def model(request, random_model):
    family, changes = GRAPHS[request.param]
    return random_model(family, **changes)[0]


def seen(model) -> dict[str, np.ndarray]:
    """Site → what flowed there, in the order of work."""
    found = {}
    model.observe([np.arange(1, 9)], lambda site, x: found.setdefault(site, np.array(x)))
    return found


def test_layers_are_those_of_the_model(model):
    assert list(model.graph.reads) == [name for name, _ in model.linears()]
    assert set(model.graph.residual_writers) <= set(model.graph.reads)
    for site in model.graph.sites.values():
        assert all(fnmatchcase(name, site.pattern) == (name in site.readers) for name in model.graph.reads)


def test_sites_flow_in_the_order_of_work(model):
    found = seen(model)
    read = [site for site in found if site in model.graph.sites]
    assert read == list(model.graph.sites) or read == [*model.graph.sites, "head.input"]
    every = {
        site for block in model.graph.blocks for part in (block.attention, block.ffn) for site in (part.input, part.sum)
    }
    assert {site for block in model.graph.blocks for site in block.attention.projections} <= set(found)
    assert set(found) - set(model.graph.sites) - every <= {"head.input"} | {
        name for block in model.graph.blocks for name in block.attention.projections
    }
    kinds = ["start", *(re.sub(r"^layers\.\d+\.", "", site) for site in found if not site.endswith(".sum")), "end"]
    assert set(zip(kinds, kinds[1:])) <= set(WORK)


def test_a_layer_reads_its_site(model):
    """Its output on what was seen there is what the model goes on with."""
    found, linears = seen(model), dict(model.linears())
    for block in model.graph.blocks:
        if model.config.rope_theta is None:
            for name in block.attention.projections:
                x, layer = found[model.graph.reads[name]], linears[name]
                expected = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
                np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_site_is_its_norms_result(model):
    before, norms = seen(model), dict(model.norms())
    for site in model.graph.sites.values():
        if site.norm is not None:
            kept = norms[site.norm].weight.copy()
            norms[site.norm].weight *= np.float32(1.5)
            moved = seen(model)
            norms[site.norm].weight[...] = kept
            same = [name for name in before if np.array_equal(before[name], moved[name])]
            earlier = list(before)[: list(before).index(site.name)]
            assert site.name not in same and set(earlier) <= set(same)
            assert same == earlier or model.config.parallel  # whose other part does not read it


def test_it_is_written_down_once():
    """No other room knows that a gate and what it gates read one site."""
    root = Path(cq.__file__).parent
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] not in ("model", "formats"):
            assert not re.search(r"""["'](gate|up|[\w.{}]*(ffn|attention)\.input)["']""", path.read_text()), path
