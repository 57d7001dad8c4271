"""Clips to latents and prompt embeddings, on Ray Data."""
