//! Hugging Face checkpoints written by the test: what disagrees with itself, has a value of another type, or asks for what
//! the decoder lacks is refused with the reason; what is harmless is accepted and gives the same model.
//!
//! `cargo xtask loaders` compares the same kinds with transformers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use formats::artifact::ModelConfig;
use formats::campaign;
use half::f16;
use prepare::base::Base;
use prepare::checkpoint::parse_config;
use prepare::files::Progress;
use prepare::sources::Fetcher;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value, json};

const INDEX: &str = "model.safetensors.index.json";

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 12,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": null,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "bfloat16",
    })
}

fn qwen3() -> Value {
    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "use_sliding_window": false,
        "sliding_window": null, "max_window_layers": 2,
    });
    with(llama(), qwen3)
}

fn llama3() -> Value {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    })
}

/// `config` with the keys of `patch`; the string "absent" takes one away.
fn with(mut config: Value, patch: Value) -> Value {
    let map = config.as_object_mut().unwrap();
    for (key, value) in patch.as_object().unwrap() {
        if value == "absent" {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    config
}

/// As `prepare` reads a configuration: parsed and checked.
fn parse(config: &Value) -> Result<ModelConfig, String> {
    let config = parse_config(&config.to_string()).map_err(|e| format!("{e:#}"))?;
    config.check().map(|()| config)
}

fn refused(base: &Value, cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (patch, reason) in cases {
        match parse(&with(base.clone(), patch.clone())) {
            Ok(config) => panic!("{patch} became {config:?}"),
            Err(message) => assert!(message.contains(reason), "{patch}: {message}"),
        }
    }
}

fn same(base: &Value, cases: impl IntoIterator<Item = Value>) {
    let expected = parse(base).unwrap();
    for patch in cases {
        assert_eq!(parse(&with(base.clone(), patch.clone())).as_ref(), Ok(&expected), "{patch}");
    }
}

#[test]
fn two_keys_for_one_fact_must_agree() {
    let scaled = llama3();
    refused(
        &llama(),
        [
            (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}), "`rope_theta` 500000"),
            (json!({"rope_scaling": {"type": "default", "rope_theta": 10000.0}}), "10000 in `rope_scaling`"),
            (json!({"rope_scaling": scaled, "rope_parameters": {"rope_type": "default"}}), "remove the other"),
            (
                json!({"rope_scaling": scaled, "rope_parameters": with(scaled.clone(), json!({"factor": 4.0}))}),
                "factor 8, low",
            ),
            // transformers would take theta from `rope_scaling`, where it is the default.
            (
                json!({"rope_theta": "absent", "rope_scaling": {"rope_type": "default"},
                       "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
                "(theta 10000, no scaling) and `rope_parameters` (theta 500000, no scaling)",
            ),
            (
                json!({"rope_scaling": {"rope_type": "llama3", "type": "default"}}),
                "rope_type `llama3` and type `default`",
            ),
            (json!({"rope_scaling": scaled, "original_max_position_embeddings": 16}), "16, and 32 in `rope_scaling`"),
            (json!({"architectures": ["MistralForCausalLM"]}), "MistralForCausalLM"),
            (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
            (json!({"layer_types": ["full_attention"]}), "1 layer_types for 2 layers"),
        ],
    );
    same(
        &llama(),
        [
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500000}}),
            json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "default"}}),
            json!({"rope_theta": "absent", "rope_parameters": {"type": "default", "rope_theta": 5e5}}),
            json!({"rope_scaling": {}, "rope_parameters": null}),
            json!({"architectures": null}),
            json!({"architectures": ["LlamaModel"]}),
        ],
    );
    let scaled = with(llama(), json!({"rope_scaling": llama3()}));
    let again = with(llama3(), json!({"rope_theta": 500000.0, "type": "llama3"}));
    same(
        &scaled,
        [
            json!({"rope_parameters": again}),
            json!({"rope_scaling": null, "rope_theta": "absent", "rope_parameters": again}),
            json!({"original_max_position_embeddings": 32}),
        ],
    );
}

#[test]
fn a_present_key_of_another_type_is_never_a_default() {
    let sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
    let more = ["num_key_value_heads", "max_position_embeddings", "head_dim", "sliding_window", "max_window_layers"];
    for key in sizes.into_iter().chain(more) {
        for value in [json!("16"), json!(-16), json!(16.5), json!(true), json!([16])] {
            refused(&qwen3(), [(json!({key: value}), "is not a whole number")]);
        }
    }
    for key in sizes.into_iter().chain(["max_position_embeddings", "head_dim", "max_window_layers"]) {
        refused(&qwen3(), [(json!({key: null}), "is not a whole number")]);
    }
    for key in sizes.into_iter().chain(["num_key_value_heads", "max_position_embeddings", "head_dim"]) {
        refused(&qwen3(), [(json!({key: 0}), "0")]);
    }
    for key in ["rope_theta", "rms_norm_eps", "partial_rotary_factor"] {
        for value in [json!("500000.0"), json!(true), json!([1.0])] {
            refused(&llama(), [(json!({key: value}), "is not a number")]);
        }
    }
    for key in ["rope_theta", "rms_norm_eps"] {
        refused(&llama(), [(json!({key: null}), "is not a number")]);
        refused(&llama(), [0.0, -1.0].map(|value| (json!({key: value}), "must be a positive number")));
    }
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "is_causal"] {
        let values = [json!("false"), json!(0), json!(null)];
        refused(&llama(), values.map(|value| (json!({key: value}), "is not true or false")));
    }
    for key in ["hidden_act", "model_type"] {
        refused(&llama(), [json!(1), json!(null)].map(|value| (json!({key: value}), "is not a string")));
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let values = [json!("llama3"), json!([]), json!(2.0), json!(false)];
        refused(&llama(), values.map(|value| (json!({key: value}), "is not an object")));
        for inner in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta"]
        {
            for value in [json!("8.0"), json!(null)] {
                refused(&llama(), [(json!({key: with(llama3(), json!({inner: value}))}), "number; correct it there")]);
            }
            let reason = if inner == "rope_theta" { "remove the other" } else { "" };
            refused(&llama(), [0, -8].map(|value| (json!({key: with(llama3(), json!({inner: value}))}), reason)));
            let value = with(llama3(), json!({inner: "absent"}));
            if inner != "rope_theta" {
                refused(&llama(), [(json!({key: value}), "is of type llama3 and has no")]);
            }
        }
        let value = with(llama3(), json!({"high_freq_factor": 0.5}));
        refused(&llama(), [(json!({key: value}), "must be below")]);
    }
    refused(&llama(), [(json!({"layer_types": "full_attention"}), "is not a list of strings")]);
    // JSON has no such numbers, though Python writes and reads them.
    for value in ["NaN", "Infinity", "1e999"] {
        let text = llama().to_string().replace("500000.0", value);
        assert!(parse_config(&text).unwrap_err().to_string().contains("not JSON"), "{value}");
    }
    assert!(parse_config("[]").is_err());
}

#[test]
fn what_the_decoder_lacks_is_refused() {
    let all = [
        (json!({"model_type": "mistral"}), "mistral"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (json!({"is_causal": false}), "is_causal"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "linear"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
        (json!({"rope_scaling": {"rope_type": "default", "factor": 2.0}}), "has `factor`, which type default"),
        (json!({"rope_scaling": with(llama3(), json!({"beta_fast": 32}))}), "has `beta_fast`, which type llama3"),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "each type of layer (`full_attention`)",
        ),
        (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "quantized already"),
        (json!({"quantization": {"group_size": 64, "bits": 4}}), "quantized already"),
        (json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        (json!({"logits_scaling": 8.0}), "logits_scaling"),
        (json!({"attention_multiplier": 1.0}), "attention_multiplier"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"per_layer_config": {"1": {"num_key_value_heads": 1}}}), "per_layer_config"),
        (json!({"transformers_weights": "other.safetensors"}), "transformers_weights"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "sliding_attention"),
        (json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}), "use_sliding_window"),
    ];
    refused(&llama(), all.clone());
    refused(&qwen3(), all.map(|(patch, reason)| (with(patch, json!({"architectures": null})), reason)));
    refused(&llama(), [(json!({"hidden_size": 18, "head_dim": 4}), "no multiple of the 4 attention heads")]);
    // Absent, Qwen3's are 4096 positions from the 28th layer on.
    let absent = json!({"num_hidden_layers": 29, "use_sliding_window": true, "max_window_layers": "absent",
                        "sliding_window": "absent"});
    refused(&qwen3(), [(absent, "use_sliding_window")]);
}

#[test]
fn what_is_harmless_is_accepted() {
    let extras = json!({
        "hidden_act": "swish", "mlp_bias": false, "rope_interleaved": false, "is_causal": true, "pretraining_tp": 1,
        "partial_rotary_factor": 1.0, "quantization_config": null, "final_logit_softcapping": null, "logit_scale": 1,
        "num_local_experts": 0, "pruned_heads": {}, "use_cache": false, "attention_dropout": 0.1, "is_llama_config": true,
        "transformers.js_config": {"dtype": "q4"}, "bos_token_id": 1, "initializer_range": 0.02, "layer_types": null,
    });
    same(&llama(), [extras.clone(), json!({"sliding_window": 4}), json!({"head_dim": null}), json!({"head_dim": 4})]);
    same(
        &qwen3(),
        [
            extras,
            json!({"sliding_window": 4}),
            json!({"layer_types": ["full_attention", "full_attention"], "use_sliding_window": true}),
            json!({"use_sliding_window": true, "sliding_window": 4}),
            json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
        ],
    );
    // transformers' defaults of the two families.
    let absent = json!({"num_key_value_heads": "absent", "rms_norm_eps": "absent", "rope_theta": "absent",
                        "head_dim": "absent", "tie_word_embeddings": "absent", "max_position_embeddings": "absent"});
    let config = parse(&with(llama(), absent.clone())).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.max_position_embeddings), (4, 4, 2048));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings), (1e-6, 10_000.0, false));
    let config = parse(&with(with(qwen3(), absent), json!({"num_attention_heads": 64}))).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.max_position_embeddings), (32, 128, 32768));
    let config = parse(&with(qwen3(), json!({"num_key_value_heads": null}))).unwrap();
    assert_eq!(config.num_key_value_heads, 4);
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn f32_tensor(shape: &[usize], seed: usize) -> (Dtype, Vec<usize>, Vec<u8>) {
    let values = (0..shape.iter().product()).map(|i: usize| ((i * 7 + seed * 13) % 23) as f32 / 32.0 - 0.25);
    (Dtype::F32, shape.to_vec(), values.flat_map(f32::to_le_bytes).collect())
}

fn tensors(config: &Value) -> Tensors {
    let config = parse(config).unwrap();
    let all = config.tensors().into_iter().enumerate();
    all.map(|(seed, (name, shape))| (name, f32_tensor(&shape, seed))).collect()
}

fn save(folder: &Path, file: &str, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(folder.join(file), serialize(views, None).unwrap()).unwrap();
}

/// Two shards and their index; `edit` may change what the index says.
fn save_sharded(folder: &Path, tensors: &Tensors, edit: impl Fn(&mut BTreeMap<String, String>)) {
    let mut index = BTreeMap::new();
    for (file, first) in [("model-00001-of-00002.safetensors", true), ("model-00002-of-00002.safetensors", false)] {
        let shard: Tensors = tensors
            .iter()
            .filter(|(n, _)| n.contains("layers.0") == first)
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        save(folder, file, &shard);
        index.extend(shard.into_keys().map(|name| (name, file.to_owned())));
    }
    edit(&mut index);
    fs::write(folder.join(INDEX), json!({"metadata": {}, "weight_map": index}).to_string()).unwrap();
}

/// A folder with `config` and whatever `fill` writes, and what `prepare` makes of it: tensors or a message.
fn load(config: &Value, fill: impl Fn(&Path)) -> Result<Tensors, String> {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    fill(&model);
    let fetcher = Fetcher {
        cache: folder.path().join("cache"),
        root: folder.path().to_owned(),
        progress: Progress { quiet: true },
    };
    let source = campaign::Source { from: "file:model".into(), path: None, sha256: Some("any".into()), revision: None };
    let base = Base::find(&fetcher, &source).map_err(|e| format!("{e:#}"))?;
    let data = folder.path().join("data");
    base.write(&data, &fetcher).map_err(|e| format!("{e:#}"))?;
    let bytes = fs::read(data.join("base/model.safetensors")).unwrap();
    let made = SafeTensors::deserialize(&bytes).unwrap();
    Ok(made.iter().map(|(n, v)| (n.to_owned(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))).collect())
}

#[track_caller]
fn load_refused(config: &Value, reasons: &[&str], fill: impl Fn(&Path)) {
    let message = load(config, fill).unwrap_err();
    assert!(reasons.iter().all(|reason| message.contains(reason)), "{message}");
}

#[test]
fn a_single_file_beside_an_index_must_hold_the_same() {
    let config = llama();
    let one = tensors(&config);
    assert_eq!(load(&config, |to| save(to, "model.safetensors", &one)).unwrap(), one);
    assert_eq!(load(&config, |to| save_sharded(to, &one, |_| {})).unwrap(), one);
    let both = |other: &Tensors| {
        let other = other.clone();
        load(&config, |to| {
            save(to, "model.safetensors", &one);
            save_sharded(to, &other, |_| {});
        })
    };
    assert_eq!(both(&one).unwrap(), one);
    let mut other = one.clone();
    other.get_mut("model.norm.weight").unwrap().2[2] ^= 1;
    let message = both(&other).unwrap_err();
    assert!(
        message.contains("`model.norm.weight` of model.safetensors differs") && message.contains(INDEX),
        "{message}"
    );
    other.remove("model.norm.weight");
    let message = both(&other).unwrap_err();
    assert!(message.contains("`model.norm.weight` is missing") && message.contains("lies beside"), "{message}");
    // An index that names the single file says the same.
    let index = || one.keys().map(|name| (name.clone(), "model.safetensors")).collect::<BTreeMap<_, _>>();
    let named = load(&config, |to| {
        save(to, "model.safetensors", &one);
        fs::write(to.join(INDEX), json!({"weight_map": index()}).to_string()).unwrap();
    });
    assert_eq!(named.unwrap(), one);
    load_refused(&config, &["model-00002-of-00002.safetensors", "stale index"], |to| {
        save(to, "model.safetensors", &one);
        save_sharded(to, &one, |_| {});
        fs::remove_file(to.join("model-00002-of-00002.safetensors")).unwrap();
    });
}

#[test]
fn an_index_must_say_where_tensors_are() {
    let config = llama();
    let one = tensors(&config);
    let name = "model.layers.0.mlp.up_proj.weight";
    load_refused(&config, &[name, "is in model-00001", "says model-00002"], |to| {
        save_sharded(to, &one, |index| {
            index.insert(name.into(), "model-00002-of-00002.safetensors".into());
        });
    });
    load_refused(&config, &[name, "does not name"], |to| {
        save_sharded(to, &one, |index| {
            index.remove(name);
        });
    });
    load_refused(&config, &["lm_head.weight", "which lacks it"], |to| {
        save_sharded(to, &one, |index| {
            index.insert("lm_head.weight".into(), "model-00002-of-00002.safetensors".into());
        });
    });
    load_refused(&config, &["model.norm.weight", "there twice"], |to| {
        save_sharded(to, &one, |_| {});
        let mut more: Tensors =
            one.iter().filter(|(n, _)| n.contains("layers.0")).map(|(n, t)| (n.clone(), t.clone())).collect();
        more.insert("model.norm.weight".into(), f32_tensor(&[16], 99));
        save(to, "model-00001-of-00002.safetensors", &more);
    });
    load_refused(&config, &["adapter_config.json", "merge"], |to| {
        save(to, "model.safetensors", &one);
        fs::write(to.join("adapter_config.json"), "{}").unwrap();
    });
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_the_embedding() {
    let config = llama();
    let one = tensors(&config);
    let embedding = one["model.embed_tokens.weight"].clone();
    let head = |config: &Value, head: Option<(Dtype, Vec<usize>, Vec<u8>)>| {
        load(config, |to| {
            let mut all = one.clone();
            all.extend(head.clone().map(|head| ("lm_head.weight".to_owned(), head)));
            save(to, "model.safetensors", &all);
        })
    };
    assert_eq!(head(&config, Some(embedding.clone())).unwrap(), one);
    // The values are multiples of 1/32, which f16 has.
    let values = embedding.2.chunks(4).map(|b| f16::from_f32(f32::from_le_bytes(b.try_into().unwrap())));
    let narrow = (Dtype::F16, embedding.1.clone(), values.flat_map(f16::to_le_bytes).collect());
    assert_eq!(head(&config, Some(narrow)).unwrap(), one);
    let mut other = embedding.clone();
    other.2[9] ^= 64;
    let message = head(&config, Some(other.clone())).unwrap_err();
    assert!(message.contains("sets tie_word_embeddings, and the stored `lm_head.weight` differs"), "{message}");
    let message = head(&config, Some(f32_tensor(&[11, 16], 0))).unwrap_err();
    assert!(message.contains("shape [11, 16]"), "{message}");

    for untied in [json!(false), json!("absent")] {
        let untied = with(llama(), json!({"tie_word_embeddings": untied}));
        assert_eq!(head(&untied, Some(other.clone())).unwrap()["lm_head.weight"], other);
        let message = head(&untied, None).unwrap_err();
        assert!(message.contains("`lm_head.weight` is missing, and config.json does not set tie_word"), "{message}");
    }
}

#[test]
fn buffers_are_left_out_and_other_tensors_refused() {
    let config = llama();
    let one = tensors(&config);
    let more = |name: &str, shape: &[usize]| {
        load(&config, |to| {
            let mut all = one.clone();
            all.insert(name.into(), f32_tensor(shape, 0));
            save(to, "model.safetensors", &all);
        })
    };
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.rotary_emb.sin_cached",
        "model.layers.1.self_attn.masked_bias",
        "model.layers.1.self_attn.bias",
        "model.layers.1.attn.bias",
    ] {
        assert_eq!(more(name, &[1, 1, 4, 4]).unwrap(), one, "{name}");
    }
    for name in
        ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "score.weight", "lm_head.bias"]
    {
        let message = more(name, &[16]).unwrap_err();
        assert!(message.contains("1 tensors the decoder does not know"), "{name}: {message}");
    }
    let bare = one.iter().map(|(n, t)| (n.strip_prefix("model.").unwrap().to_owned(), t.clone())).collect();
    assert_eq!(load(&config, |to| save(to, "model.safetensors", &bare)).unwrap(), one);
}

#[test]
fn weights_that_are_no_numbers_are_found() {
    let config = llama();
    let one = tensors(&config);
    let name = "model.layers.1.mlp.down_proj.weight";
    let infinite = f16::INFINITY.to_le_bytes();
    let cases: [(Dtype, &[u8]); 5] = [
        (Dtype::F32, &f32::NAN.to_le_bytes()),
        (Dtype::F32, &f32::NEG_INFINITY.to_le_bytes()),
        (Dtype::F16, &infinite),
        (Dtype::BF16, &half::bf16::NAN.to_le_bytes()),
        (Dtype::BF16, &half::bf16::INFINITY.to_le_bytes()),
    ];
    for (dtype, value) in cases {
        load_refused(&config, &[name, "NaN or infinity (1 values of 384, the first at index 383)"], |to| {
            let mut all = one.clone();
            let shape = all[name].1.clone();
            let mut bytes = vec![0; 384 * value.len()];
            bytes[383 * value.len()..].copy_from_slice(value);
            all.insert(name.into(), (dtype, shape, bytes));
            save(to, "model.safetensors", &all);
        });
    }
}
