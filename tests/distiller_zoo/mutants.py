"""Wrong losses that the tests here must notice: scripts/dev/mutate.py tries them. A method needs none to be tested."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One textual change. file: of the method, if not distiller_zoo/<method>.py."""

    old: str
    new: str
    file: str = ""

    def path(self, method: str) -> str:
        return self.file or f"distiller_zoo/{method}.py"


MUTANTS: dict[str, tuple[Mutant, ...]] = {
    "vanilla": (
        Mutant("div: float = 0.0", "div: float = 1.0"),
        Mutant("self.cross_entropy(logits[", "-self.cross_entropy(logits[", "distiller_zoo/base.py"),
    ),
    "kd": (
        Mutant("log_target=True).sum(1) * temperature**2", "log_target=True).sum(1)", "distiller_zoo/_math.py"),
        Mutant('log_p, log_q, reduction="none', 'log_q, log_p, reduction="none', "distiller_zoo/_math.py"),
        Mutant("z_t.argmax(1), reduction", "z_s.argmax(1), reduction"),
        Mutant("(1 + entropy(z_s", "(1 - entropy(z_s", "distiller_zoo/_math.py"),
        Mutant("z_t.detach().std(1) + STD_EPS).pow(2)", "z_t.detach().std(1) + STD_EPS)", "distiller_zoo/base.py"),
    ),
    "fitnet": (
        Mutant('squared_error(s["fitnet.regressed"]', 'squared_error(-s["fitnet.regressed"]'),
        Mutant("F.relu(self.bn(", "(self.bn("),
    ),
    "at": (
        Mutant("vector_norm(f, dim=1).pow(2)", "vector_norm(f, dim=1).pow(4)", "distiller_zoo/_math.py"),
        Mutant("loss + F.mse_loss", "loss - F.mse_loss"),
    ),
    "sp": (Mutant("flat @ flat.T", "flat.abs() @ flat.T"), Mutant('{"sp": F.mse_loss', '{"sp": 2 * F.mse_loss')),
    "vid": (
        Mutant("+ variance.log()", "- variance.log()"),
        Mutant("loss + 0.5 *", "loss + 1.0 *"),
        Mutant("MIN_VARIANCE = 1e-5", "MIN_VARIANCE = 1e-2"),
    ),
    "crd": (
        Mutant("above_noise.sum(1) - log_p", "above_noise.sum(1) + log_p", "crd/criterion.py"),
        Mutant("(scores.shape[1] - 1)", "(scores.shape[1] - 2)", "crd/criterion.py"),
    ),
    "srrl": (
        Mutant('+ F.mse_loss(s["srrl.logits"]', '- F.mse_loss(s["srrl.logits"]'),
        Mutant('F.mse_loss(s["srrl.vector"]', '2 * F.mse_loss(s["srrl.vector"]'),
    ),
    "semckd": (Mutant("@ keys.mT /", "@ -keys.mT /"), Mutant(".mean() / len(self.stages_s)", ".mean()")),
    "simkd": (Mutant('squared_error(s["simkd.projected"]', 'squared_error(-s["simkd.projected"]'),),
    "ab": (
        Mutant("clamp_max(-MARGIN)", "clamp_max(MARGIN)"),
        Mutant("MARGIN = 1.0", "MARGIN = 1.1"),
        Mutant("SCALE = 3 / 1000", "SCALE = 1 / 1000"),
        Mutant("2.0 ** (i - len", "2.0 ** (-i - len"),
    ),
    "cc": (
        Mutant('(s["cc.embedded"] - t', '(s["cc.embedded"] + t'),
        Mutant(" / max(len(neighbours)", " / max(len(delta)"),
    ),
    "fsp": (Mutant("/ top.shape[2]", "/ top.shape[1]"), Mutant("loss + F.mse_loss", "loss - F.mse_loss")),
    "ft": (
        Mutant("F.l1_loss(attention_map", "-F.l1_loss(attention_map"),
        Mutant("nn.LeakyReLU(0.1)", "nn.LeakyReLU(0.01)"),
        Mutant("PARAPHRASE_RATE = 0.5", "PARAPHRASE_RATE = 0.25"),
        Mutant('squared_error(t["ft_init.rebuilt"]', 'squared_error(-t["ft_init.rebuilt"]'),
    ),
    "hkd": (
        Mutant("((p - q) * (p", "((p + q) * (p"),
        Mutant("/ 2, 1 / (1 + distance)", "/ 2, 1 / (2 + distance)"),
        Mutant("DECAY = 100.0, 0.7", "DECAY = 100.0, 0.8"),
        Mutant("EPS = 1e-6", "EPS = 1e-5"),
        Mutant("(products.mT - products.detach())", "(products - products.detach())", "distiller_zoo/_math.py"),
    ),
    "irg": (
        Mutant("- 2 * flat @ flat.T", "+ 2 * flat @ flat.T"),
        Mutant('loss + F.mse_loss(s["pooled"]', 'loss - F.mse_loss(s["pooled"]'),
        Mutant("(change_s - change_t)", "(change_s + change_t)"),
        Mutant("(F.mse_loss(s[a], s[b]) - F", "(F.mse_loss(s[a], s[b]) + F"),
    ),
    "kdsvd": (
        Mutant("-before.pow(2)], 2) / 8", "-before.pow(2)], 2) / 4"),
        Mutant("CANDIDATES = 4", "CANDIDATES = 1"),
        Mutant("gap = first - values", "gap = first + values"),
    ),
    "nst": (
        Mutant("- 2 * k_st", "+ 2 * k_st"),
        Mutant("x[:, :, None] * (p / y", "x[:, :, None] * (1 / y"),
        Mutant("/ x.shape[1] for x", "/ x.shape[2] for x"),
    ),
    "ofd": (
        Mutant("/ 2 ** (len(self.pairs) - 1 - i)", "/ 2 ** (len(self.pairs) - i)"),
        Mutant("torch.minimum(f_s", "torch.maximum(f_s"),
        Mutant("f_t.clamp_max(0)", "f_t.clamp_max(1)"),
    ),
    "pkt": (Mutant("unit @ unit.T + 1) / 2", "unit @ unit.T - 1) / 2"), Mutant("EPS = 1e-7", "EPS = 1e-6")),
    "reviewkd": (
        Mutant("weight /= 2", "weight /= 4"),
        Mutant("x + deeper", "x - deeper"),
        Mutant("own, deeper = conv", "deeper, own = conv"),
        Mutant("[f_s * own, own]", "[f_s * own, -own]"),
        Mutant("- mean * scale", "+ mean * scale"),
        Mutant("values = values - mean", "values = values + mean"),
        Mutant("WARM_UP = 20", "WARM_UP = 10"),
        Mutant("WIDEST = 512", "WIDEST = 8"),
    ),
    "rkd": (
        Mutant("- 2 * e @ e.T", "+ 2 * e @ e.T", "distiller_zoo/_math.py"),
        Mutant("+ self.cfg.angle", "- self.cfg.angle"),
        Mutant("option(25.0,", "option(20.0,"),
    ),
    "hsakd_teacher": (
        Mutant("TURNS * batch.target", "batch.target", "distiller_zoo/_heads.py"),
        Mutant("len(heads) * over_views(rows", "over_views(rows", "distiller_zoo/_heads.py"),
    ),
    "hsakd": (
        Mutant("kd_T: float = 3.0", "kd_T: float = 4.0", "distiller_zoo/_heads.py"),
        Mutant("(1 - 1 / TURNS) / others", "1 / others", "distiller_zoo/_heads.py"),
        Mutant("pixels.rot90(k,", "pixels.rot90(-k,", "distiller_zoo/_heads.py"),
    ),
    "hsakd_online": (Mutant("labels + mutual", "labels - mutual"), Mutant("(t, detached(s), same)", "(t, s, same)")),
    "dml": (
        Mutant("kd_T: float = 1.0", "kd_T: float = 2.0"),
        Mutant("common_terms(t, detached(s), batch", "common_terms(t, s, batch", "distiller_zoo/base.py"),
    ),
    "dpcd_teacher": (Mutant("num * self.cross_entropy", "self.cross_entropy", "distiller_zoo/_heads.py"),),
    "dpcd": (
        Mutant("alpha * tckd + beta * nckd", "alpha * tckd - beta * nckd"),
        Mutant("self.cfg.base * (1 - 0.5 * rho)", "self.cfg.base * (1 + 0.5 * rho)"),
        Mutant("sensitivity = 12 *", "sensitivity = 10 *"),
        Mutant("others[students] * others[teachers]", "others[students] * others[students]"),
        Mutant("EMA = 0.9", "EMA = 0.99"),
        Mutant("log_n[students], log_n.detach()[teachers]", "log_n[teachers], log_n.detach()[students]"),
    ),
    "cat_kd": (
        Mutant("F.mse_loss(maps_s, maps_t)", "F.mse_loss(-maps_s, maps_t)"),
        Mutant("F.normalize(maps_s, dim=2)", "F.normalize(maps_s, dim=1)"),
        Mutant("beta: float = 300.0", "beta: float = 30.0"),
    ),
    "ctkd": (
        Mutant("x.detach() - scale", "x.detach() + scale"),
        Mutant("(1 - math.cos(", "(1 + math.cos("),
        Mutant("torch.tensor(1.0)", "torch.tensor(2.0)"),
        Mutant("self.cfg.start + self.cfg.span", "self.cfg.start - self.cfg.span"),
    ),
    "dist": (
        Mutant("inter = 1 - correlation", "inter = 1 + correlation"),
        Mutant('{"dist": tau**2 *', '{"dist": tau *'),
        Mutant("option(4.0,", "option(2.0,"),
    ),
    "dkd": (
        Mutant("[margin, -margin]", "[margin, margin]", "distiller_zoo/_math.py"),
        Mutant(
            "log_target=True).sum(1) * temperature**2",
            "log_target=True).sum(1) * temperature",
            "distiller_zoo/_rows.py",
        ),
        Mutant("alpha * tckd + beta", "alpha * tckd - beta", "distiller_zoo/_rows.py"),
        Mutant("option(\n            8.0,", "option(\n            6.0,"),
    ),
    "mgd": (
        Mutant('squared_error(s["mgd.generated"]', 'squared_error(-s["mgd.generated"]'),
        Mutant("(drawn >= self", "(drawn < self"),
        Mutant("beta: float = 7e-5", "beta: float = 2e-5"),
    ),
    "mlkd": (
        Mutant("p_s @ p_s.T - p_t", "p_s @ p_s.T + p_t"),
        Mutant("p_s.T @ p_s - p_t", "p_s.T @ p_s + p_t"),
        Mutant("TEMPERATURES = (2.0,", "TEMPERATURES = (1.0,"),
        Mutant("weak = 0.5 if", "weak = 0.6 if"),
        Mutant("v == 0 or not self.cfg", "v == 1 or not self.cfg"),
    ),
    "nkd": (
        Mutant("target_rows(z_s, z_t, labels) + self", "target_rows(z_s, z_t, labels) - self"),
        Mutant(
            "log_softmax(1)).sum(1) * temperature**2", "log_softmax(1)).sum(1) * temperature", "distiller_zoo/_rows.py"
        ),
        Mutant("option(\n            3.5,", "option(\n            1.5,"),
    ),
    "ofa_kd": (
        Mutant("rows = rows - (enhanced", "rows = rows + (enhanced"),
        Mutant(".pow(self.cfg.eps) - label", ".pow(self.cfg.eps) + label"),
        Mutant("option(\n            1.0,", "option(\n            1.5,"),
    ),
    "srd": (
        Mutant('s["srd.projected"] - t', 's["srd.projected"] + t'),
        Mutant('{"srd": 2 * distance', '{"srd": 1 * distance'),
        Mutant("option(\n            4.0,", "option(\n            2.0,"),
    ),
    "vkd": (
        Mutant('smooth_l1_loss(s["vkd', 'smooth_l1_loss(-s["vkd'),
        Mutant("q * r.diagonal().sign()", "q * -r.diagonal().sign()"),
    ),
    "wttm": (
        Mutant("log_power = self.cfg.gamma", "log_power = -self.cfg.gamma"),
        Mutant("(log_u.exp() * divergence)", "((-log_u).exp() * divergence)"),
        Mutant("option(\n            0.2,", "option(\n            0.1,"),
    ),
    "ttm": (
        Mutant("self.cfg.gamma * self", "-self.cfg.gamma * self"),
        Mutant("option(\n            0.1,", "option(\n            0.2,"),
    ),
    "pld": (
        Mutant('labels[:, None], float("inf"))', 'labels[:, None], float("-inf"))'),
        Mutant("(remaining - ranked)", "(remaining + ranked)"),
        Mutant("option(\n            4.0,", "option(\n            1.0,"),
    ),
    "luminet": (
        Mutant("centred.pow(2).mean(0) + EPS", "centred.pow(2).mean(0) - EPS"),
        Mutant("(self.cfg.alpha / temperature) ** 2", "(self.cfg.alpha / temperature)"),
        Mutant("option(\n            33.0,", "option(\n            2.0,"),
    ),
    "wkd_l": (
        Mutant("/ (v @ kernel.T + FLOOR)", "/ (u @ kernel.T + FLOOR)"),
        Mutant("ENTROPY = 0.05", "ENTROPY = 0.1"),
        Mutant("ITERATIONS = 10", "ITERATIONS = 9"),
        Mutant("0.5 * (1 + math.cos", "0.5 * (1 - math.cos"),
        Mutant("return 1 - products", "return 1 + products"),
    ),
    "rld": (
        Mutant("z_t < z_t.gather", "z_t <= z_t.gather"),
        Mutant("z_t.argmax(1))", "labels)"),
        Mutant("rows = rows + self.cfg.correlation", "rows = rows - self.cfg.correlation"),
    ),
    "sdd": (
        Mutant("u = 1.0 + (right", "u = 1.0 - (right"),
        Mutant("FINEST = 4", "FINEST = 8"),
        Mutant("option((1, 2),", "option((1, 4),"),
    ),
    "ldrld": (
        Mutant("* (i + j)) / (1.5 + j - i)", "* (i + j)) / (1.5 + j + i)"),
        Mutant("descending=True)", "descending=False)"),
        Mutant("local = pairs + whole", "local = pairs - whole"),
        Mutant("(self.cfg.top - 1) / 2 + 1)", "(self.cfg.top - 1) / 2 + 2)"),
    ),
    "skd": (
        Mutant("a_s @ a_s.T - a_t", "a_s @ a_s.T + a_t"),
        Mutant("max(len(delta) - 1, 1)", "max(len(delta), 1)"),
        Mutant("+ ridge * identity", "+ 2 * ridge * identity"),
    ),
    "crld": (
        Mutant("sure_w * (self", "sure_s * (self"),
        Mutant("self._divergence(strong_s, weak_t) +", "self._divergence(strong_s, strong_t) +"),
        Mutant('0.5, "weight a_c', '1.5, "weight a_c'),
    ),
    "logits": (Mutant('F.mse_loss(self.comparable(s["logits"])', 'F.mse_loss(-self.comparable(s["logits"])'),),
    "cakd": (
        Mutant("-F.softplus(score).mean()", "F.softplus(score).mean()"),
        Mutant("F.softplus(-real).mean() + F", "F.softplus(-real).mean() - F"),
        Mutant(">= self.cfg.replace).to(", "< self.cfg.replace).to("),
        Mutant("v @ v.mT / scale for", "v @ v.mT for"),
        Mutant("0.2, 0.05, 0.05", "0.2, 0.05, 0.5"),
        Mutant("progress.epoch - 1 - self", "progress.epoch - self"),
    ),
    "dask": (
        Mutant("(distances(e_s), distances(e_t))", "(distances(e_s), distances(e_s))"),
        Mutant("loss + self.cfg.angle *", "loss - self.cfg.angle *"),
        Mutant(
            "return F.mse_loss(s[self.last_s], t[self.last_t])", "return F.mse_loss(t[self.last_t], t[self.last_t])"
        ),
        Mutant("div: float = 0.01", "div: float = 0.1"),
        Mutant("ANCHOR_T = 0.1", "ANCHOR_T = 0.2"),
        Mutant("in_space - target.detach()", "in_space - target"),
    ),
    "itrd": (
        Mutant("gram_s.pow(2).sum() - gram", "gram_s.pow(2).sum() + gram"),
        Mutant("pow(2 * alpha)", "pow(alpha)"),
        Mutant('s["pooled"] if self.same_width else', 's["pooled"] if False else'),
        Mutant('2.0, "weight of the corr', '1.0, "weight of the corr'),
    ),
    "wkd_f": (
        Mutant("(mean_s - mean_t)", "(mean_s + mean_t)"),
        Mutant("+ (std_s - std_t)", "- (std_s - std_t)"),
        Mutant("-(-(i + 1) * size // grid)", "(i + 1) * size // grid"),
        Mutant("0.5 * (1 + math.cos(", "0.5 * (1 - math.cos("),
        Mutant("EPS = 1e-5", "EPS = 1e-3"),
    ),
    "embed": (
        Mutant("1 - F.cosine", "1 + F.cosine"),
        Mutant("if self.cfg.whiten else", "if not self.cfg.whiten else"),
        Mutant("nn.GELU()", "nn.ReLU()"),
        Mutant("loss + self.cfg.local", "loss - self.cfg.local"),
    ),
    "queue": (
        Mutant("loss + self.cfg.local", "loss - self.cfg.local"),
        Mutant('torch.cat([t["queue.vector"], self.rows_kept])', 'torch.cat([self.rows_kept, t["queue.vector"]])'),
        Mutant("self.rows_kept.copy_(self._updated(t))", "return None"),
        Mutant("0.07, ", "0.1, "),
    ),
    "norm": (
        Mutant("self.cfg.copies * F.mse_loss", "F.mse_loss"),
        Mutant("F.adaptive_max_pool2d", "F.adaptive_avg_pool2d"),
        Mutant("return self.layer32(expanded) + x", "return self.layer32(expanded)"),
        Mutant('"logits": levelled(t["logits"])', '"logits": t["logits"]'),
        Mutant("progress.epoch - 1", "progress.epoch"),
    ),
    "kdpp": (
        Mutant("return 1 - (f_s", "return 1 + (f_s"),
        Mutant("torch.maximum(f_s.norm(dim=1)", "torch.maximum(f_s.detach().norm(dim=1)"),
        Mutant("F.normalize(self.class_means, eps=EPS)", "self.class_means"),
        Mutant("progress.epoch - 1", "progress.epoch"),
        Mutant("self.cfg.beta * self.cfg.direction", "self.cfg.beta"),
    ),
    "dot": (
        Mutant("-self.cfg.delta, decays", "self.cfg.delta, decays"),
        Mutant("None, self.cfg.delta)", "None, 0.0)"),
        Mutant("decays=True", "decays=False"),
        Mutant("alone and not first", "alone", "helper/training/optim.py"),
        Mutant("0.0 if alone else", "0.0 if False else", "helper/training/optim.py"),
    ),
    "deepkd": (
        Mutant(
            'Part("target", ("deepkd_target",), cfg.target), other',
            'Part("target", ("deepkd_target",), cfg.other), other',
        ),
        Mutant('Part("task", None, cfg.target), other,', 'Part("task", None, cfg.task), other,'),
        Mutant("masked_fill(outside, -1e9)", "masked_fill(outside, 0)"),
        Mutant("other * (1 - p_t", "other * (p_t"),
        Mutant("alpha * ramp", "alpha"),
        Mutant("LEAST = 0.05", "LEAST = 0.1"),
    ),
    "dhkd": (
        Mutant("-math.log(2) - 0.5", "-math.log(2) + 0.5"),
        Mutant("on + (-t).sigmoid()", "on - (-t).sigmoid()"),
        Mutant("clamp(max=0)", "clamp(min=0)"),
        Mutant("-apart * a if b is None", "b if b is None"),
    ),
    "deit": (
        Mutant("z_t.argmax(1)", "z_t.argmin(1)"),
        Mutant('z_s, z_t = s["distilled_logits"]', 'z_s, z_t = s["class_logits"]'),
        Mutant('OWN_LOGITS: s["class_logits"]', 'OWN_LOGITS: s["logits"]'),
        Mutant("loss / z_s.shape[1]", "loss"),
    ),
    "fcfd": (
        Mutant("loss + squared_error(f, f_t)", "loss - squared_error(f, f_t)"),
        Mutant("F.mse_loss(f.relu().mean((2, 3))", "F.mse_loss(f.mean((2, 3))"),
        Mutant("SLOPE = 0.1", "SLOPE = 0.2"),
        Mutant("mixed + kl(", "mixed - kl("),
        Mutant("norm.track_running_stats = False", "norm.track_running_stats = True"),
        Mutant("warmed_up(progress.epoch, ", "warmed_up(progress.epoch - 1, "),
    ),
}
