"""What the benchmarks of training share: sides, peers, rounds."""
