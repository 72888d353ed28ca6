//! Links libtorch (see the torch-link crate) and compiles the fused operators that `src/ops.rs` calls.

use std::path::Path;

fn main() {
    torch_link::emit();
    println!("cargo:rerun-if-changed=src/ops.cpp");
    println!("cargo:rerun-if-changed=src/kernels.h");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("DEP_TCH_LIBTORCH_LIB is unset: keep torch-sys a direct dependency of this package");
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(false)
        // Sums may be taken in vectors; not-a-number stays what it is.
        .flag("-fassociative-math")
        .flag("-fno-signed-zeros")
        .flag("-fno-trapping-math")
        .flag("-fno-math-errno")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/ops.cpp")
        .compile("model_ops");
}
