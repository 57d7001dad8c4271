"""`python -m vidgen_ray` is `vidgen`."""

from vidgen_ray.cli import main

main()
