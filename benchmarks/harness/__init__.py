"""What the benchmarks share: workers in processes of their own, rounds in turn, stamps, tables, the results page."""
