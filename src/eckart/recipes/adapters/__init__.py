"""Adapters of the LoRA family: a start, a form, what becomes of the weight, and which tensors train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eckart.model.adapting.recipe import Adapt
from eckart.recipes.adapters import others, pairs, products, rounded, searched, smaller

ADAPTERS: Mapping[str, Callable[[], Adapt]] = {
    "full": others.full,
    "lora": pairs.lora,
    "rslora": pairs.rslora,
    "lora-plus": pairs.lora_plus,
    "dora": pairs.dora,
    "pissa": pairs.pissa,
    "milora": pairs.milora,
    "ba-lora": pairs.ba_lora,
    "olora": pairs.olora,
    "corda": pairs.corda,
    "corda-preview": pairs.corda_preview,
    "eva": pairs.eva,
    "lora-ga": pairs.lora_ga,
    "lora-sb": products.lora_sb,
    "kasa": products.kasa,
    "adalora": products.adalora,
    "increlora": products.increlora,
    "sorsa": products.sorsa,
    "svfit": products.svfit,
    "effort": products.effort,
    "svft": products.svft,
    "nora": products.nora,
    "curlora": products.curlora,
    "nlora": products.nlora,
    "slora": products.slora,
    "inttune": products.inttune,
    "block-lora": pairs.block_lora,
    "vera": products.vera,
    "lora-pro": pairs.lora_pro,
    "allora": pairs.allora,
    "autolora": searched.autolora,
    "diffora": searched.diffora,
    "flora-tucker": others.flora_tucker,
    "dota": others.dota,
    "smt": others.smt,
    "aflora": others.aflora,
    "flylora": others.flylora,
    "moe-lora-riemannian": others.moe_lora_riemannian,
    "qlora": rounded.qlora,
    "qpissa": rounded.qpissa,
    "qdota": rounded.qdota,
    "loftq": rounded.loftq,
    "semi-nmf-embeddings": others.semi_nmf_embeddings,
    "loram": smaller.loram,
    "loram-width": smaller.loram_width,
}
