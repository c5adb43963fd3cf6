"""The graph of a configuration is the one that the model runs, and the only one that is written down."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

import cq
from cq.model.sites import WORK

FAMILIES = pytest.mark.parametrize("family", ["bert", "llama"])


def seen(model) -> dict[str, np.ndarray]:
    """Site → what flowed there, in the order of work."""
    found = {}
    model.observe([np.arange(1, 9)], lambda site, x: found.setdefault(site, np.array(x)))
    return found


@FAMILIES
def test_layers_are_those_of_the_model(random_model, family):
    model = random_model(family)[0]
    assert list(model.graph.reads) == [name for name, _ in model.linears()]
    assert set(model.graph.residual_writers) <= set(model.graph.reads)
    for site in model.graph.sites.values():
        assert all(fnmatchcase(name, site.pattern) == (name in site.readers) for name in model.graph.reads)


@FAMILIES
def test_sites_flow_in_the_order_of_work(random_model, family):
    model = random_model(family)[0]
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


@FAMILIES
def test_a_layer_reads_its_site(random_model, family):
    """Its output on what was seen there is what the model goes on with."""
    model = random_model(family)[0]
    found, linears = seen(model), dict(model.linears())
    for block in model.graph.blocks:
        if model.config.rope_theta is None:
            for name in block.attention.projections:
                x, layer = found[model.graph.reads[name]], linears[name]
                expected = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
                np.testing.assert_allclose(found[name], expected, atol=1e-5)


@FAMILIES
def test_a_site_is_its_norms_result(random_model, family):
    model = random_model(family)[0]
    before, norms = seen(model), dict(model.norms())
    for site in model.graph.sites.values():
        if site.norm is not None:
            kept = norms[site.norm].weight.copy()
            norms[site.norm].weight *= np.float32(1.5)
            moved = seen(model)
            norms[site.norm].weight[...] = kept
            same = [name for name in before if np.array_equal(before[name], moved[name])]
            assert same == list(before)[: list(before).index(site.name)]


def test_it_is_written_down_once():
    """No other room knows that a gate and what it gates read one site."""
    root = Path(cq.__file__).parent
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] not in ("model", "formats"):
            assert not re.search(r"""["'](gate|up|[\w.{}]*(ffn|attention)\.input)["']""", path.read_text()), path
