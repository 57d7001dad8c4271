"""An adapter against fixed prompts, with it and without it."""
