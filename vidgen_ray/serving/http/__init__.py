"""The HTTP side: routes, requests, responses, errors."""
