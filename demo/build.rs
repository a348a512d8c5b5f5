//! Tells `tests/support` that it is the demo's: what only tests need is left out.

fn main() {
    println!("cargo::rustc-cfg=demo");
    println!("cargo::rerun-if-changed=build.rs");
}
