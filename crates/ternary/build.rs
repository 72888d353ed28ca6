//! Links libtorch (see the torch-link crate) and compiles the few lines of C++ that `src/native.rs` calls.

use std::path::Path;

fn main() {
    torch_link::emit();
    println!("cargo:rerun-if-changed=src/native.cpp");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("DEP_TCH_LIBTORCH_LIB is unset: keep torch-sys a direct dependency of this package");
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/native.cpp")
        .compile("ternary_native");
}
