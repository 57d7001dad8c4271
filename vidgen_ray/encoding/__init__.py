"""Encode clips and prompts to latents and embeddings on Ray Data."""
