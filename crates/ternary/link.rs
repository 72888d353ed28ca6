// Link arguments for every package that links libtorch; its `build.rs` includes this file.
//
// A plain dependent of torch-sys gets no rpath and the linker drops `libtorch_cuda`, so each such package names torch-sys
// as a direct dependency (which makes `DEP_TCH_LIBTORCH_LIB` visible here) and calls `link`.

/// Emits the rpath of libtorch and, where libtorch was installed with CUDA, keeps `libtorch_cuda` in the binary.
///
/// # Panics
/// When the calling package does not depend on torch-sys directly: cargo then hides where libtorch is.
fn link() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("DEP_TCH_LIBTORCH_LIB is unset: make torch-sys a direct dependency of this package");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    // libtorch_cuda needs its own libraries beside it; the three-wheel CPU set has none of them.
    let cuda = std::path::Path::new(&lib).join("libtorch_cuda.so").exists()
        && std::path::Path::new(&lib).join("../../nvidia/cu13/lib/libcublas.so.13").exists();
    if cuda {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-ltorch");
    }
}
