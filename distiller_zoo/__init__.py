"""Distillation methods by name; a method is imported when it is first asked for."""

from __future__ import annotations

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
        "logits": "distiller_zoo.logits:Logits",
        "cakd": "distiller_zoo.cakd:CAKD",
        "dask": "distiller_zoo.dask:DASK",
        "hsakd_teacher": "distiller_zoo.hsakd_teacher:HSAKDTeacher",
        "hsakd": "distiller_zoo.hsakd:HSAKD",
        "hsakd_online": "distiller_zoo.hsakd_online:HSAKDOnline",
        "dml": "distiller_zoo.dml:DML",
        "dpcd_teacher": "distiller_zoo.dpcd_teacher:DPCDTeacher",
        "dpcd": "distiller_zoo.dpcd:DPCD",
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

# registry name -> the spelling that names a run's folder, where the published toolboxes had another
published_names = {
    "fitnet": "hint",
    "at": "attention",
    "sp": "similarity",
    "ab": "abound",
    "cc": "correlation",
    "ft": "factor",
}
