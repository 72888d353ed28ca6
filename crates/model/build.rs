//! Links libtorch (see the torch-link crate) and compiles the fused operators that `src/ops.rs` calls.

use std::path::Path;

fn main() {
    torch_link::emit();
    for file in ["ops.cpp", "kernels.cpp", "kernels.h"] {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("DEP_TCH_LIBTORCH_LIB is unset: keep torch-sys a direct dependency of this package");
    let include = Path::new(&lib).join("../include");
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");

    let mut ops = cpp();
    ops.define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/ops.cpp");
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
        kernels.define("LEVEL", *level).file("src/kernels.cpp");
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

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(false);
    build
}
