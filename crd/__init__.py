"""Contrastive representation distillation: memory banks, negatives drawn on the device, the NCE criterion."""
