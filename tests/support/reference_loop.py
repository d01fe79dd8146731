"""kd and simkd on two CIFAR ResNets, written out as the published loops have it; imports torch alone."""

import torch
import torch.nn.functional as F


def features(net, x):
    f0 = F.relu(net.bn1(net.conv1(x)))
    f1 = net.layer1(f0)
    f2 = net.layer2(f1)
    f3 = net.layer3(f2)
    f4 = F.adaptive_avg_pool2d(f3, 1).flatten(1)
    return [f0, f1, f2, f3, f4], net.fc(f4)


def train(method, student, teacher, projector, batches, lr=0.05):
    """batches: (normalised images, labels). Returns the loss of every step."""
    params = list(student.parameters()) + ([] if projector is None else list(projector.parameters()))
    optimizer = torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=5e-4, foreach=False, fused=False)
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
