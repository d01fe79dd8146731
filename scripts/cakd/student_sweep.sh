#!/usr/bin/env bash
# The paper's students on ImageNet, alone and with CAKD from one teacher, one recipe for all.
#   bash scripts/cakd/student_sweep.sh DATA_FOLDER SAVE_ROOT TEACHER.pth [MODEL_T] [FLAG ...]
# MODEL_T: the teacher's network, torchvision:vit_b_16 unless given; for Swin-L a large Swin of timm, such as
# timm:swin_large_patch4_window7_224 (the published teacher, 87.32, is the one of 384 px). Students alone are trained once.
# GPUS=0,1,2,3,4,5,6,7 before the command starts one process per GPU; FLAGs are passed to every run.
# Published top-1        alone   ViT-B/16   Swin-L
#   ResNet18             69.76    71.73     72.09
#   MobileNetV2          71.88    73.34     73.66
#   EfficientNet-B0      77.69    79.23     79.52
# Not measured here yet. EfficientNet-B0 and Swin-L come from timm (requirements-extra.txt).
RETORT_REQUIREMENTS=extra source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
data=${1:?folder of ImageNet}
save=${2:?folder for the runs}
teacher=${3:?published weights of the teacher, a .pth or .safetensors file}
model_t=${4:-torchvision:vit_b_16}
for student in ResNet18 MobileNetV2_Imagenet timm:efficientnet_b0; do
    bash scripts/cakd/imagenet_baseline.sh "$data" "$save" "$student" "${@:5}"
    bash scripts/cakd/imagenet_cakd.sh "$data" "$save" "$teacher" paper "$student" "$model_t" "${@:5}"
done
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save" --title "CAKD from ${model_t#*:}: students"
