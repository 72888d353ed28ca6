//! Links libtorch (see the torch-link crate).
fn main() {
    torch_link::emit();
}
