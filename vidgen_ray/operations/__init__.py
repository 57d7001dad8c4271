"""Health checks of machines and clusters, weight downloads, and capacity planning."""
