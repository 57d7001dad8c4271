"""Local clusters, load and faults that tests share with the programs of benchmarks/."""
