#!/usr/bin/env bash
# The paper's students on ImageNet, alone and with CAKD from ViT-B/16, one recipe for all.
#   bash scripts/cakd/student_sweep.sh DATA_FOLDER SAVE_ROOT VIT_B_16.pth
# Published top-1, alone -> CAKD: ResNet18 69.76 -> 71.73, MobileNetV2 71.88 -> 73.34, EfficientNet-B0 77.69 -> 79.23.
# Not measured here yet. EfficientNet-B0 comes from timm (requirements-extra.txt).
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh" extra
data=${1:?folder of ImageNet}
save=${2:?folder for the runs}
teacher=${3:?torchvision weights of vit_b_16, a .pth file}
for student in ResNet18 MobileNetV2_Imagenet timm:efficientnet_b0; do
    bash scripts/cakd/imagenet_baseline.sh "$data" "$save" "$student"
    bash scripts/cakd/imagenet_cakd.sh "$data" "$save" "$teacher" paper "$student"
done
"$PYTHON" scripts/make_table.py --root "$save" --title "CAKD from ViT-B/16: students"
