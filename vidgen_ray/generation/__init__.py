"""One request to one scored artifact, without Ray."""
