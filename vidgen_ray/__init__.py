"""Image-to-video generation for newsrooms: CogVideoX-5B-I2V in batches and behind HTTP, on Ray."""

__version__ = "0.1.0"
