"""Distillation methods by name; a method is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from core.registry import Registry

method_dict = Registry(
    "method",
    {
        "vanilla": "distiller_zoo.vanilla:Vanilla",
        "kd": "distiller_zoo.kd:KD",
        "fitnet": "distiller_zoo.fitnet:FitNet",
        "at": "distiller_zoo.at:AT",
        "sp": "distiller_zoo.sp:SP",
        "vid": "distiller_zoo.vid:VID",
        "crd": "distiller_zoo.crd:CRD",
        "srrl": "distiller_zoo.srrl:SRRL",
        "semckd": "distiller_zoo.semckd:SemCKD",
        "simkd": "distiller_zoo.simkd:SimKD",
        "ab": "distiller_zoo.ab:AB",
        "cc": "distiller_zoo.cc:CC",
        "fsp": "distiller_zoo.fsp:FSP",
        "ft": "distiller_zoo.ft:FT",
        "hkd": "distiller_zoo.hkd:HKD",
        "irg": "distiller_zoo.irg:IRG",
        "kdsvd": "distiller_zoo.kdsvd:KDSVD",
        "nst": "distiller_zoo.nst:NST",
        "ofd": "distiller_zoo.ofd:OFD",
        "pkt": "distiller_zoo.pkt:PKT",
        "reviewkd": "distiller_zoo.reviewkd:ReviewKD",
        "rkd": "distiller_zoo.rkd:RKD",
        "cat_kd": "distiller_zoo.cat_kd:CATKD",
        "ctkd": "distiller_zoo.ctkd:CTKD",
        "dist": "distiller_zoo.dist:DIST",
        "dkd": "distiller_zoo.dkd:DKD",
        "mgd": "distiller_zoo.mgd:MGD",
        "mlkd": "distiller_zoo.mlkd:MLKD",
        "nkd": "distiller_zoo.nkd:NKD",
        "ofa_kd": "distiller_zoo.ofa_kd:OFAKD",
        "srd": "distiller_zoo.srd:SRD",
        "vkd": "distiller_zoo.vkd:VkD",
        "wttm": "distiller_zoo.wttm:WTTM",
        "ttm": "distiller_zoo.ttm:TTM",
        "pld": "distiller_zoo.pld:PLD",
        "luminet": "distiller_zoo.luminet:LumiNet",
        "wkd_l": "distiller_zoo.wkd_l:WKDL",
        "rld": "distiller_zoo.rld:RLD",
        "sdd": "distiller_zoo.sdd:SDD",
        "ldrld": "distiller_zoo.ldrld:LDRLD",
        "skd": "distiller_zoo.skd:SKD",
        "crld": "distiller_zoo.crld:CRLD",
        "logits": "distiller_zoo.logits:Logits",
        "cakd": "distiller_zoo.cakd:CAKD",
        "dask": "distiller_zoo.dask:DASK",
        "hsakd_teacher": "distiller_zoo.hsakd_teacher:HSAKDTeacher",
        "hsakd": "distiller_zoo.hsakd:HSAKD",
        "hsakd_online": "distiller_zoo.hsakd_online:HSAKDOnline",
        "dml": "distiller_zoo.dml:DML",
        "dpcd_teacher": "distiller_zoo.dpcd_teacher:DPCDTeacher",
        "dpcd": "distiller_zoo.dpcd:DPCD",
        "itrd": "distiller_zoo.itrd:ITRD",
        "wkd_f": "distiller_zoo.wkd_f:WKDF",
        "embed": "distiller_zoo.embed:Embed",
        "queue": "distiller_zoo.queue:Queue",
        "norm": "distiller_zoo.norm:NORM",
        "kdpp": "distiller_zoo.kdpp:KDPP",
        "dot": "distiller_zoo.dot:DOT",
        "deepkd": "distiller_zoo.deepkd:DeepKD",
        "dhkd": "distiller_zoo.dhkd:DHKD",
        "deit": "distiller_zoo.deit:DeiT",
        "fcfd": "distiller_zoo.fcfd:FCFD",
    },
    aliases={
        "baseline": "vanilla",
        "hint": "fitnet",
        "attention": "at",
        "similarity": "sp",
        "abound": "ab",
        "correlation": "cc",
        "factor": "ft",
        "kr": "reviewkd",
    },
)

# registry name -> its name in run folders, if the published toolboxes used another name
published_names = {
    "fitnet": "hint",
    "at": "attention",
    "sp": "similarity",
    "ab": "abound",
    "cc": "correlation",
    "ft": "factor",
}


def __getattr__(name: str) -> Any:
    """attach() and Task (a method in your own training loop) are imported on first use."""
    if name in ("attach", "Task"):
        return getattr(importlib.import_module("distiller_zoo._attach"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
