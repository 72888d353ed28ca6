//! Links libtorch.

include!("../../crates/ternary/link.rs");

fn main() {
    link();
}
