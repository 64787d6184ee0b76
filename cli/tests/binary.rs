//! Tests of the built binary. Because of this target, `cargo test` builds the binary for the end-to-end tests.

use std::process::Command;

#[test]
fn version_is_that_of_the_package() {
    let output = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .arg("--version")
        .output()
        .expect("run trunkline");
    assert!(output.status.success());
    let expected = format!("trunkline {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
