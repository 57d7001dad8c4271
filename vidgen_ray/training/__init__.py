"""Train a LoRA adapter on encoded clips, in one process or on Ray Train."""
