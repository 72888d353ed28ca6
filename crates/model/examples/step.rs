//! scratch
use artifact::{Architecture, ModelConfig, ProjectionKind};
use model::*;
use tch::{Device, Kind, Tensor};
fn main() {
    let threads: i32 = std::env::var("THREADS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    tch::set_num_threads(threads);
    // Seconds of processor time of all threads: with one thread, steady on a busy machine.
    let clock = std::time::Instant::now();
    let cpu = || { if threads > 1 { return clock.elapsed().as_secs_f64(); }
        let s = std::fs::read_to_string("/proc/self/task").err();
        let _ = s;
        let mut t = 0.0;
        for e in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            if let Ok(s) = std::fs::read_to_string(e.path().join("schedstat")) {
                t += s.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9;
            }
        }
        t
    };
    let a: Vec<String> = std::env::args().collect();
    let nano = a[1] == "nano";
    let compute = if a.get(2).map(|s| s == "f32").unwrap_or(false) { Kind::Float } else { Kind::BFloat16 };
    let config = if nano {
        ModelConfig {
            architecture: Architecture::Qwen3,
            vocab_size: 2048,
            hidden_size: 256,
            intermediate_size: 512,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 64,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            max_position_embeddings: 1024,
        }
    } else {
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            rope_theta: 1e5,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_position_embeddings: 8192,
        }
    };
    let w = Weights::init(&config, 1, Device::Cpu).unwrap();
    if a.iter().any(|s| s == "eval") {
        let window = 2048;
        let d = Decoder::new(&config, &w, compute).unwrap();
        let l = Dense::new(&config, &w, compute).unwrap();
        let ids: Vec<i64> = (0..8192).map(|i| (i * 7919) % config.vocab_size as i64).collect();
        let tb = vec![1u16; config.vocab_size];
        for _ in 0..4 {
            let s = cpu();
            let r = score(&d, &l, &ids, &tb, window, |_| {});
            println!("eval {:.1} tok/s loss {}", 8192.0 / (cpu() - s), r.loss());
        }
        return;
    }
    let un = w.unquantized(&config).unwrap();
    for (_, t) in un.iter() {
        let _ = t.set_requires_grad(true);
    }
    let d = Decoder::new(&config, &un, compute).unwrap();
    struct L(Vec<Vec<Tensor>>);
    impl Linears for L {
        fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
            let w: Vec<&Tensor> = kinds.iter().map(|&k| &self.0[layer][k as usize]).collect();
            ops::linears(x, &w)
        }
    }
    let l = L((0..config.num_hidden_layers)
        .map(|i| {
            ProjectionKind::ALL
                .iter()
                .map(|&k| w.projection(i, k).unwrap().to_kind(compute).detach().set_requires_grad(true))
                .collect()
        })
        .collect());
    let (b, t) = if nano { (16, 256) } else { (4, 256) };
    let ids = Tensor::randint(config.vocab_size as i64, [b, t + 1], (Kind::Int64, Device::Cpu));
    let (x, y) = (ids.narrow(1, 0, t).contiguous(), ids.narrow(1, 1, t).reshape([-1]));
    let mut best = [f64::MAX; 4];
    for _ in 0..(if nano { 60 } else { 6 }) {
        for (_, t) in un.iter() {
            let mut g = t.grad();
            if g.defined() {
                let _ = g.zero_();
            }
        }
        for r in &l.0 {
            for t in r {
                let mut g = t.grad();
                if g.defined() {
                    let _ = g.zero_();
                }
            }
        }
        let start = cpu();
        let h = d.hidden(&l, &x);
        let f = cpu() - start;
        if std::env::var_os("TERNARY").is_some() {
            let head = d.head().detach().to_kind(compute).set_requires_grad(true);
            let o = ternary::loss::objective(&h, &head, &y, None);
            let g = cpu() - start;
            o.backward().unwrap();
            let e = cpu() - start;
            for (i, v) in [f, g - f, e - g, e].into_iter().enumerate() { best[i] = best[i].min(v); }
            continue;
        }
        let loss = ternary::loss::objective(&h, d.head(), &y, None);
        let g = cpu() - start;
        loss.total.backward();
        let e = cpu() - start;
        for (i, v) in [f, g - f, e - g, e].into_iter().enumerate() {
            best[i] = best[i].min(v);
        }
        if !nano {
            println!("loss {}", loss.cross_entropy.double_value(&[]));
        }
    }
    let params: usize = (0..config.num_hidden_layers)
        .flat_map(|_| ProjectionKind::ALL)
        .map(|k| {
            let [o, i] = config.projection_shape(k);
            o * i
        })
        .sum::<usize>()
        + config.vocab_size * config.hidden_size;
    let n = (b * t) as f64;
    println!(
        "fwd {:.4} loss {:.4} bwd {:.4} total {:.4} = {:.1} tok/s; matmul GFLOP/s {:.0}",
        best[0],
        best[1],
        best[2],
        best[3],
        n / best[3],
        6.0 * params as f64 * n / best[3] / 1e9
    );
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .filter(|l| l.starts_with("VmHWM"))
            .collect::<String>()
    );
}
