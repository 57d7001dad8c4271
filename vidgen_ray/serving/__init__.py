"""Serving on Ray Serve: HTTP in front, a durable job queue behind, the batch's path to a clip."""
