#!/usr/bin/env bash
# Public teachers, to where the students' commands look: save/teachers/models/NAME_vanilla/NAME_best.pth
#   bash scripts/teachers/fetch_teachers.sh                  # the six of RepDistiller's and SimKD's tables
#   bash scripts/teachers/fetch_teachers.sh resnet32x4 ResNet34
#   bash scripts/teachers/fetch_teachers.sh --list           # every source, and whether it was reachable when last tried
# If there is no public teacher, train one: bash scripts/teachers/train_teachers.sh
RETORT_REQUIREMENTS=extra source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
exec "$PYTHON" scripts/teachers/fetch_teachers.py "$@"
