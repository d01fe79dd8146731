"""kd, hint, attention, similarity, vid, srrl and simkd on two CIFAR ResNets, written out as the published loops have
them; imports torch alone."""

import torch
import torch.nn.functional as F

WEIGHTS = {"kd": 0.0, "hint": 100.0, "attention": 1000.0, "similarity": 3000.0, "vid": 1.0, "srrl": 1.0, "simkd": 1.0}


def features(net, x):
    f0 = F.relu(net.bn1(net.conv1(x)))
    f1 = net.layer1(f0)
    f2 = net.layer2(f1)
    f3 = net.layer3(f2)
    f4 = F.adaptive_avg_pool2d(f3, 1).flatten(1)
    return [f0, f1, f2, f3, f4], net.fc(f4)


def attention_map(f):
    return F.normalize(f.pow(2).mean(1).view(f.size(0), -1))


def own_loss(method, feat_s, feat_t, logit_t, connector, teacher):
    """The term that -b weighs. connector: the layers of the method, as the published code names them."""
    if method == "hint":
        x = connector["bn"](connector["conv"](feat_s[1]))
        return F.mse_loss(F.relu(x), feat_t[1])
    if method == "attention":
        pairs = zip(feat_s[1:-1], feat_t[1:-1], strict=True)
        return sum((attention_map(a) - attention_map(b)).pow(2).mean() for a, b in pairs)
    if method == "similarity":
        f_s, f_t = (f[-2].view(f[-2].shape[0], -1) for f in (feat_s, feat_t))
        g_s, g_t = torch.mm(f_s, torch.t(f_s)), torch.mm(f_t, torch.t(f_t))
        diff = F.normalize(g_t) - F.normalize(g_s)
        return (diff * diff).view(-1, 1).sum(0) / (f_s.shape[0] * f_s.shape[0])
    if method == "vid":
        loss = 0
        for layer, a, b in zip(connector, feat_s[1:-1], feat_t[1:-1], strict=True):
            variance = torch.log(1 + torch.exp(layer["log_scale"])) + 1e-5
            variance = variance.view(1, -1, 1, 1)
            loss = loss + torch.mean(0.5 * ((layer["regressor"](a) - b) ** 2 / variance + torch.log(variance)))
        return loss
    vector = connector["transfer"](feat_s[-1].unsqueeze(-1).unsqueeze(-1)).view(feat_s[-1].size(0), -1)
    return F.mse_loss(vector, feat_t[-1]) + F.mse_loss(teacher.fc(vector), logit_t)


def train(method, student, teacher, projector, batches, lr=0.05):
    """batches: (normalised images, labels). projector: the layers of a method, or None. Returns the loss of every
    step, top-1 and top-5 in training."""
    own = [] if projector is None else parameters(projector)
    optimizer = torch.optim.SGD(
        [*student.parameters(), *own], lr=lr, momentum=0.9, weight_decay=5e-4, foreach=False, fused=False
    )
    student.train()
    teacher.eval()
    losses, top1, top5, count = [], 0.0, 0.0, 0
    for images, target in batches:
        feat_s, logit_s = features(student, images)
        with torch.no_grad():
            feat_t, logit_t = features(teacher, images)
        loss_cls = F.cross_entropy(logit_s, target)
        p_s, p_t = F.log_softmax(logit_s / 4, dim=1), F.softmax(logit_t / 4, dim=1)
        loss_div = F.kl_div(p_s, p_t, reduction="sum") * 4**2 / logit_s.shape[0]
        if method == "kd":
            loss = loss_cls + loss_div
        elif method != "simkd":
            loss_kd = own_loss(method, feat_s, feat_t, logit_t, projector, teacher)
            loss = loss_cls + loss_div + WEIGHTS[method] * loss_kd
        else:
            projected = projector.train()(feat_s[-2])
            logit_s = teacher.fc(F.adaptive_avg_pool2d(projected, 1).flatten(1))
            target_map = F.adaptive_avg_pool2d(feat_t[-2], feat_s[-2].shape[2:])
            loss = 0 * loss_cls + 0 * loss_div + F.mse_loss(projected, target_map)
        losses.append(loss.item())
        _, pred = logit_s.topk(5, 1, True, True)
        correct = pred.t().eq(target.view(1, -1).expand_as(pred.t()))
        top1 += correct[:1].reshape(-1).float().sum(0).item()
        top5 += correct[:5].reshape(-1).float().sum(0).item()
        count += len(target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, top1 / count, top5 / count


def parameters(layers):
    """Of a module, or of a dict or list of modules and parameters."""
    if isinstance(layers, torch.nn.Parameter):
        return [layers]
    if isinstance(layers, torch.nn.Module):
        return list(layers.parameters())
    parts = layers.values() if isinstance(layers, dict) else layers
    return [p for part in parts for p in parameters(part)]
