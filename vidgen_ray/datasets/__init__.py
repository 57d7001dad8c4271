"""Convert dataset annotations and folders of clips to `metadata.jsonl`, and check them."""
