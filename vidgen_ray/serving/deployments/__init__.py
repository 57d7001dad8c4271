"""The Ray Serve deployments: Ingress, Dispatcher, Generator, Scorer."""
