//! scratch
use std::time::Instant;
use tch::{Device, Kind, Tensor};
fn t(name: &str, flop: f64, mut f: impl FnMut()) {
    f();
    let mut best = f64::MAX;
    for _ in 0..8 {
        let s = Instant::now();
        for _ in 0..3 {
            f();
        }
        best = best.min(s.elapsed().as_secs_f64() / 3.0);
    }
    println!("{name:40} {:8.3} ms {:7.1} GF/s", best * 1e3, flop / best / 1e9);
}
fn main() {
    tch::set_num_threads(2);
    let _g = tch::no_grad_guard();
    let r = |a: i64, b: i64| Tensor::randn([a, b], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    for (n, o, i) in [
        (1024, 1536, 576),
        (1024, 576, 1536),
        (1024, 576, 576),
        (1024, 192, 576),
        (1024, 960, 576),
        (1024, 3072, 576),
        (256, 49152, 576),
        (1024, 8192, 576),
        (4096, 256, 256),
        (4096, 512, 256),
        (4096, 256, 512),
        (4096, 2048, 256),
    ] {
        let x = r(n, i);
        let w = r(o, i);
        let g = r(n, o);
        let f = 2.0 * (n * o * i) as f64;
        println!("N {n} out {o} in {i}");
        t("fwd x@W.t", f, || {
            let _ = x.matmul(&w.tr());
        });
        t("fwd linear", f, || {
            let _ = x.linear::<&Tensor>(&w, None);
        });
        let wt = w.tr().contiguous();
        t("fwd x@Wt contiguous", f, || {
            let _ = x.matmul(&wt);
        });
        t("dX g@W", f, || {
            let _ = g.matmul(&w);
        });
        t("dX g@Wt.t (pretransposed)", f, || {
            let _ = g.matmul(&wt.tr());
        });
        t("dW g.t@x", f, || {
            let _ = g.tr().matmul(&x);
        });
        t("dW (x.t@g).t", f, || {
            let _ = x.tr().matmul(&g);
        });
        let gt = g.tr().contiguous();
        let xt = x.tr().contiguous();
        t("dW gT contig@x", f, || {
            let _ = gt.matmul(&x);
        });
        t("dW gT contig@xT.t", f, || {
            let _ = gt.matmul(&xt.tr());
        });
        t("dW xT contig@g", f, || {
            let _ = xt.matmul(&g);
        });
        t("dW xT contig@gT.t", f, || {
            let _ = xt.matmul(&gt.tr());
        });
        t("transpose copy g", 0.0, || {
            let _ = g.tr().contiguous();
        });
        let (xf, wf) = (x.to_kind(Kind::Float), w.to_kind(Kind::Float));
        if o < 8000 {
            t("f32 fwd", f, || {
                let _ = xf.matmul(&wf.tr());
            });
        }
    }
}
