//! Package of the test targets `conformance` and `e2e` and of the benchmarks. It exports nothing.
