//! One test per check.

use crate::{imports, layers, limits, links, wording};

fn assert_none(violations: &[String]) {
    assert!(
        violations.is_empty(),
        "{} violations:\n{}",
        violations.len(),
        violations.join("\n")
    );
}

#[test]
fn imports_go_downwards_only() {
    assert_none(&layers::upward_imports());
}

#[test]
fn heavy_dependencies_have_one_owner() {
    assert_none(&layers::foreign_dependencies());
}

#[test]
fn every_package_is_listed() {
    assert_none(&layers::unlisted_packages());
}

#[test]
fn platform_names_no_topic() {
    assert_none(&layers::topics_in_platform());
}

#[test]
fn files_do_not_import_in_cycles() {
    assert_none(&imports::cycles());
}

#[test]
fn files_have_a_header_and_a_limit() {
    assert_none(&limits::file_rules());
}

#[test]
fn signatures_are_short() {
    assert_none(&limits::signatures());
}

#[test]
fn unsafe_code_is_confined_and_justified() {
    assert_none(&limits::unsafe_code());
}

#[test]
fn structs_of_streams_and_views_are_narrow() {
    assert_none(&limits::wide_structs());
}

#[test]
fn a_type_is_changed_in_few_files() {
    assert_none(&limits::spread_impls());
}

#[test]
fn links_resolve() {
    assert_none(&links::broken_links());
}

#[test]
fn wording_is_plain() {
    assert_none(&wording::phrases());
}

#[test]
fn at_least_forty_phrases_are_checked() {
    assert!(wording::PHRASES.len() >= 40, "{}", wording::PHRASES.len());
}
