//! `shophosting-backup`: the command line.
fn main() {}
