//! Links libtorch and compiles the C++ that `src/native.rs` and `src/model/native.rs` call.

use std::path::{Path, PathBuf};

include!("link.rs");

fn main() {
    link();
    for file in ["native.cpp", "model/ops.cpp", "model/kernels.cpp", "model/kernels.h"] {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("DEP_TCH_LIBTORCH_LIB is unset: keep torch-sys a direct dependency of this package");
    let include = Path::new(&lib).join("../include");
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");

    with_torch(&include).opt_level(2).file("src/native.cpp").compile("ternary_native");
    let mut ops = with_torch(&include);
    ops.file("src/model/ops.cpp");
    if x86 {
        ops.define("MODEL_X86_LEVELS", None);
    }
    ops.compile("model_ops");

    // The loops, once for each instruction set; `ops.cpp` chooses when the program runs.
    let levels: &[(&str, &[&str])] = if x86 {
        &[
            ("plain", &["-march=x86-64"]),
            ("v3", &["-march=x86-64-v3"]),
            ("v4", &["-march=x86-64-v4"]),
            ("v4bf16", &["-march=x86-64-v4", "-mavx512bf16"]),
        ]
    } else {
        &[("plain", &[])]
    };
    for (level, flags) in levels {
        let mut kernels = cpp();
        kernels.define("LEVEL", *level).file("src/model/kernels.cpp");
        for flag in *flags {
            kernels.flag(flag);
        }
        // Sums may be taken in vectors; not-a-number stays what it is.
        for flag in ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"] {
            kernels.flag(flag);
        }
        kernels.compile(&format!("model_kernels_{level}"));
    }
}

fn with_torch(include: &PathBuf) -> cc::Build {
    let mut build = cpp();
    build.define("_GLIBCXX_USE_CXX11_ABI", "1").include(include).include(include.join("torch/csrc/api/include"));
    build
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(false);
    build
}
