"""From fields to sums, on any device: shells of the lattice, the compiled core, torch's operations, CUDA kernels."""
