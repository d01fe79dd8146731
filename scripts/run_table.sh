#!/usr/bin/env bash
# A published table, from its commands: bash scripts/run_table.sh TABLE [--trials N] [--dry-run] [-- flags of training]
# Runs what is missing, skips what is finished; if stopped, the same command resumes. --list names the tables.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" scripts/run_table.py "$@"
