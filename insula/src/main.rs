//! The one binary: every process of an Insula cloud.
fn main() {}
