//! Package of the tests that involve several crates: `conformance`, `e2e`, and the benchmarks in `bench`. `tests/run`
//! starts the services that some of them need. The library is empty.
