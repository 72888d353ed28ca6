//! Links libtorch.

include!("../ternary/link.rs");

fn main() {
    link();
}
