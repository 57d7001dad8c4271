"""Annotations of others, and folders of clips, as `metadata.jsonl`."""
