# Sourced by the ImageNet scripts of this folder: $PYTHON, and the flags of the devices in $GPUS.
# GPUS=0,1,2,3,4,5,6,7 starts one process per GPU; --batch_size is that of all of them.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
GPUS=${GPUS:-0}
devices=(--gpu_id "$GPUS")
if [[ "$GPUS" == *,* ]]; then
    devices+=(--multiprocessing_distributed)
fi
