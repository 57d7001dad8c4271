"""Serving on Ray Serve: HTTP in front, a durable job store behind, the batch's path to a clip."""
