"""The recipe of the embedded model, from photos to a diffusers checkpoint."""
