"""Encoded clips to a LoRA adapter, without Ray."""
