use std::time::Instant;
use tch::{Device, Kind, Tensor};
use ternary::Grouping;
use ternary::loss;
use ternary::quantize::*;
use ternary::weight::*;
fn time(name: &str, n: usize, mut f: impl FnMut()) {
    f();
    let mut best = f64::MAX;
    let cpu = || {
        let s = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<&str> = s.split(' ').collect();
        f[13].parse::<f64>().unwrap() * 10.0
    };
    let n = n * 3;
    let c = cpu();
    for _ in 0..n {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("{name:40} best wall {:8.2} ms, mean user cpu {:8.1} ms", best * 1e3, (cpu() - c) / n as f64);
}
fn main() {
    tch::manual_seed(0);
    let which = std::env::args().nth(1).unwrap_or_default();
    println!("threads {}", tch::get_num_threads());
    if which.is_empty() || which == "loss" {
        for (v, d, n) in [(49152i64, 576i64, 1024i64), (2048, 256, 4096)] {
            let head = (Tensor::randn([v, d], (Kind::Float, Device::Cpu)) * 0.1)
                .to_kind(Kind::BFloat16)
                .set_requires_grad(true);
            let hidden =
                Tensor::randn([n, d], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16).set_requires_grad(true);
            let targets = Tensor::randint(v, [n], (Kind::Int64, Device::Cpu));
            for rows in [128i64, 256, 512, 1024, 4096] {
                if rows > n {
                    continue;
                }
                time(&format!("V{v} products only, {rows} rows"), 3, || {
                    tch::no_grad(|| {
                        let w = head.detach();
                        let mut s = w.zeros_like();
                        for h in hidden.detach().split(rows, 0) {
                            let z = h.matmul(&w.tr());
                            let _ = z.matmul(&w);
                            let _ = s.addmm_(&z.tr(), &h);
                        }
                    })
                });
            }
            time(&format!("V{v} objective"), 3, || {
                let _ = loss::objective(&hidden, &head, &targets, None);
            });
            time(&format!("V{v} objective, frozen head"), 3, || {
                let _ = loss::objective(&hidden, &head.detach(), &targets, None);
            });
            let t = loss::Teacher { hidden: &hidden, head: &head, weight: 0.5, temperature: 2.0 };
            time(&format!("V{v} objective, teacher"), 3, || {
                let _ = loss::objective(&hidden, &head, &targets, Some(t));
            });
            time(&format!("V{v} autograd 256 rows"), 3, || {
                for (h, y) in hidden.detach().split(256, 0).iter().zip(targets.split(256, 0)) {
                    let h = h.detach().set_requires_grad(true);
                    let l = h.matmul(&head.tr()).to_kind(Kind::Float).cross_entropy_for_logits(&y);
                    l.backward();
                }
            });
            time(&format!("V{v} forward only"), 3, || {
                let _ = loss::cross_entropy(&hidden, &head, &targets);
            });
            let f: f64 = hidden.detach().matmul(&head.detach().tr()).double_value(&[0, 0]);
            let _ = f;
        }
    }
    if which == "act" {
        for k in [Kind::Float, Kind::BFloat16] {
            let x = Tensor::randn([1024, 576], (Kind::Float, Device::Cpu)).to_kind(k);
            time(&format!("fake_quantize x100 {k:?}"), 5, || {
                for _ in 0..100 {
                    let _ = ternary::activation::fake_quantize(&x, 8, 1.0);
                }
            });
        }
    }
    if which == "soft" {
        let h = Tensor::randn([1024, 8], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let w = Tensor::randn([49152, 8], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let y = Tensor::randint(49152, [1024], (Kind::Int64, Device::Cpu));
        time("D8 product only", 3, || {
            let _ = h.matmul(&w.tr());
        });
        time("D8 forward", 3, || {
            let _ = loss::cross_entropy(&h, &w, &y);
        });
        time("D8 objective", 3, || {
            let _ = loss::objective(&h, &w, &y, None);
        });
        let t = loss::Teacher { hidden: &h, head: &w, weight: 0.5, temperature: 2.0 };
        time("D8 teacher", 3, || {
            let _ = loss::objective(&h, &w, &y, Some(t));
        });
    }
    if which.is_empty() || which == "quant" {
        for (rule, grouping) in [
            (Scale::Twn, Grouping::Group(64)),
            (Scale::AbsMean, Grouping::Group(64)),
            (Scale::Mse, Grouping::Group(64)),
            (Scale::Twn, Grouping::Row),
            (Scale::Twn, Grouping::Tensor),
        ] {
            let method =
                Method { grouping, scale: rule, deadzone: rule.default_deadzone(), estimator: Estimator::Plain };
            let mut ws: Vec<_> = (0..40)
                .map(|_| {
                    TernaryWeight::new(Tensor::randn([1536, 576], (Kind::Float, Device::Cpu)), method, Kind::BFloat16)
                })
                .collect();
            time(&format!("refresh 35.4M {rule:?} {grouping:?}"), 3, || {
                for w in &mut ws {
                    w.refresh(Blend::HARD)
                }
            });
        }
        let w = Tensor::randn([40 * 1536, 576], (Kind::Float, Device::Cpu));
        let mut o = w.to_kind(Kind::BFloat16);
        time("cast 35.4M to bf16 (aten)", 3, || o.copy_(&w));
    }
    if which.is_empty() || which == "optim" {
        use ternary::optim::*;
        for kind in [Kind::Float, Kind::BFloat16] {
            let ps: Vec<_> = (0..40).map(|_| Tensor::randn([1536, 576], (Kind::Float, Device::Cpu))).collect();
            let gs: Vec<_> =
                (0..40).map(|_| Some(Tensor::randn([1536, 576], (Kind::Float, Device::Cpu)).to_kind(kind))).collect();
            let mut a = AdamW::new(Options::default());
            let g = a.group(Group { learning_rate: 1e-3, weight_decay: 0.0 });
            for p in &ps {
                a.add(g, p)
            }
            time(&format!("adamw 35.4M grads {kind:?}"), 3, || {
                let _ = a.step(&gs, 1.0).unwrap();
            });
            time(&format!("norm only {kind:?}"), 3, || {
                for g in gs.iter().flatten() {
                    let _ = g.norm_scalaropt_dtype(2.0, Kind::Float);
                }
            });
        }
    }
}
