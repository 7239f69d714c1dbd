"""What narrower bonds are expected to cost the loss, site by site, from one pass forward and one back over the original model."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from eckart.bonds import BondGraph
from eckart.bonds.graph import Map
from eckart.bonds.groups import crossing_of_groups
from eckart.bonds.seen import crossing_of
from eckart.model.narrowing import maps_at
from eckart.model.run import Run
from eckart.model.sites import Site
from eckart.model.survey import backward, embed_original, original
from eckart.model.tensorfile import write_all
from eckart.stats import Moments


def site_losses(run: Run, graph: BondGraph, sites: list[Site]) -> dict[str, Tensor]:
    """For every site the loss that is expected with 0, 1, ... units, in nats per token.

    A bond of which k units are left costs its readers ``c(k)`` of the mean squared size ``c(0)`` of what they read. At the m outputs y of a
    map that go wrong by the same share, ``mean ||d||^2 / (2 m) * mean ||y||^2 * c(k) / c(0)`` is the loss that this adds, d being the
    gradient of the summed loss there, with labels drawn from the model: their Fisher matrix taken as a multiple of the identity, as for
    matrices. y is what the reader gives; of keys, which queries read, the keys.
    """
    embed_original(run)
    maps = {site.name: _judged(graph, site) for site in sites}
    for block in range(run.blocks):
        here = [site for site in sites if site.block == block]

        def make(block: int = block, here: list[Site] = here) -> tuple[object, list[str]]:
            # Also where a choice goes by weights alone, what it costs is measured.
            names = maps_at(run, graph, here)
            source, there = run.file(original(block)), run.file(original(block + 1))
            seen = run.walking().run_block(block, source, there, observe=list(names.values()), gram=True)
            moments = {name: seen[module] for name, module in names.items() if module in seen}
            write_all(run.file(_file(block)), {site.name: _curve(run, graph, site, moments) for site in here})
            return None, [original(block + 1), _file(block)]

        run.journal.once(f"sites/forward-{block}", make)
        run.progress("measure", block + 1, run.blocks, run.skeleton.blocks[block])
    _, gradients = backward(run)
    targets = {target.disk: target for target in run.targets}
    found: dict[str, Tensor] = {}
    for block in range(run.blocks):
        curves = load_file(run.file(_file(block)))
        for site in sites:
            if site.block == block:
                target = targets[maps[site.name].weight]
                found[site.name] = 0.5 * gradients[target.name] / target.shape[0] * curves[site.name]
    return found


def _file(block: int) -> str:
    return f"site-curves-{block:04d}.safetensors"


def _judged(graph: BondGraph, site: Site) -> Map:
    """The map at whose outputs gradients are taken."""
    maps = {entry.weight: entry for entry in graph.maps.values()}
    ends = [end for end in site.bonds[0].ends if end.tensor in maps]
    readers = [end for end in ends if end.reads and end.axis != maps[end.tensor].outputs]
    return maps[(readers or [end for end in ends if not end.reads])[0].tensor]


def _curve(run: Run, graph: BondGraph, site: Site, moments: dict[str, Moments]) -> Tensor:
    """The mean squared error at the outputs of the map that is judged, added up over the bonds of a site, for 0, 1, ... units (u + 1,)."""
    tensors = {name: run.checkpoint.read_finite(name) for name in sorted(site.maps)}
    if site.heads:
        crossing = crossing_of_groups(graph, site.heads, tensors, moments)
        return site.prepare(site.name, crossing).curve()
    found = torch.zeros(site.units + 1, dtype=torch.float64)
    read = _judged(graph, site).weight in {end.tensor for end in site.bonds[0].readers}
    for bond in site.bonds:
        crossing = crossing_of(graph, bond, tensors, moments)
        curve = site.prepare(bond.name, crossing).curve()
        whole = float(curve[0])
        # Keys are judged by their own size: the share of the scores that goes wrong is the share of the keys that does.
        scale = 1.0 if read else (float(crossing.seen.trace()) / whole if whole > 0 else 0.0)
        found += scale * curve
    return found
