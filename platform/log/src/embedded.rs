//! The embedded log (being built).
