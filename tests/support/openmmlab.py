"""Networks of OpenMMLab's names, written out from the description of their modules: shapes and order of weights."""

from __future__ import annotations

from torch import nn


def conv_bn(c_in, c_out, size, groups=1):
    box = nn.Module()
    box.conv = nn.Conv2d(c_in, c_out, size, bias=False, groups=groups)
    box.bn = nn.BatchNorm2d(c_out)
    return box


class Shift(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net


def recogniser(backbone, width, num_classes):
    model = nn.Module()
    model.backbone = backbone
    model.cls_head = nn.Module()
    model.cls_head.fc_cls = nn.Linear(width, num_classes)
    return model


def resnet50(num_classes, shifted):
    backbone = nn.Module()
    backbone.conv1 = conv_bn(3, 64, 7)
    c_in = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        layer = nn.ModuleList()
        for i in range(blocks):
            block = nn.Module()
            for k, (a, b, size) in enumerate(((c_in, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
                unit = conv_bn(a, b, size)
                if shifted and k == 1:
                    unit.conv = Shift(unit.conv)
                block.add_module(f"conv{k}", unit)
            if i == 0:
                block.downsample = conv_bn(c_in, 4 * width, 1)
            layer.append(block)
            c_in = 4 * width
        backbone.add_module(f"layer{stage}", layer)
    return recogniser(backbone, 2048, num_classes)


def mobilenet_v2(num_classes, shifted):
    backbone = nn.Module()
    backbone.conv1 = conv_bn(3, 32, 3)
    c_in = 32
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for stage, (expansion, c_out, blocks, stride) in enumerate(settings, 1):
        layer = nn.ModuleList()
        for i in range(blocks):
            hidden, block = c_in * expansion, nn.Module()
            units = [conv_bn(c_in, hidden, 1)] if expansion != 1 else []
            units += [conv_bn(hidden, hidden, 3, groups=hidden), conv_bn(hidden, c_out, 1)]
            if shifted and expansion != 1 and c_in == c_out and (stride == 1 or i > 0):
                units[0] = Shift(units[0])
            block.conv = nn.ModuleList(units)
            layer.append(block)
            c_in = c_out
        backbone.add_module(f"layer{stage}", layer)
    backbone.conv2 = conv_bn(320, 1280, 1)
    return recogniser(backbone, 1280, num_classes)


def mit_mobilenet_v2(num_classes):
    """temporal-shift-module's: eight modules in a row per block, the first of a shifted one under `net`."""
    model, base = nn.Module(), nn.Module()
    features = [nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
    c_in = 32
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, c_out, blocks, stride in settings:
        for i in range(blocks):
            hidden, block = c_in * expansion, nn.Module()
            first = (
                [nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()] if expansion != 1 else []
            )
            if expansion != 1 and c_in == c_out and (stride == 1 or i > 0):
                first[0] = Shift(first[0])
            depthwise = [nn.Conv2d(hidden, hidden, 3, bias=False, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6()]
            last = [nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
            block.conv = nn.Sequential(*first, *depthwise, *last)
            features.append(block)
            c_in = c_out
    features.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
    base.features = nn.Sequential(*features)
    model.base_model = base
    model.new_fc = nn.Linear(1280, num_classes)
    return model
