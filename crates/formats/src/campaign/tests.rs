//! The messages that a person gets for each mistake, and the committed campaigns.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::artifact::{Architecture, Grouping};

use super::*;

const NANO: &str = include_str!("../../../../experiments/nano/campaign.toml");
const SMOLLM2: &str = include_str!("../../../../experiments/smollm2-135m/campaign.toml");
const QWEN3: &str = include_str!("../../../../experiments/qwen3-0.6b/campaign.toml");

/// Message for a campaign in which `from` became `to`.
fn message(campaign: &str, from: &str, to: &str) -> String {
    assert!(campaign.contains(from), "{from:?} is not in the campaign");
    Campaign::parse(&campaign.replacen(from, to, 1)).expect_err(to)
}

fn line(campaign: &str, from: &str) -> usize {
    campaign[..campaign.find(from).unwrap()].matches('\n').count() + 1
}

#[test]
fn a_campaign_without_a_clock_keeps_wall_time() {
    let campaign = Campaign::parse(NANO).unwrap();
    assert_eq!(campaign.budget.clock, Clock::Work);
    let line = NANO.lines().find(|line| line.starts_with("clock = ")).unwrap();
    assert_eq!(Campaign::parse(&NANO.replace(line, "")).unwrap().budget.clock, Clock::Wall);
    assert!(message(NANO, "clock = \"work\"", "clock = \"sundial\"").contains("budget.clock"));
}

#[test]
fn unknown_keys_name_the_nearest() {
    let cases = [
        ("seconds = 60.0", "secnds = 60.0", "unknown key budget.secnds; did you mean budget.seconds?"),
        ("[budget]", "[budgte]", "unknown key budgte; did you mean budget?"),
        ("description =", "descripton =", "unknown key descripton; did you mean description?"),
        (
            "hidden_size = 256",
            "hiden_size = 256",
            "unknown key model.scratch.hiden_size; did you mean model.scratch.hidden_size?",
        ),
        ("sha256 =", "sha265 =", "unknown key data.text[0].source.sha265; did you mean data.text[0].source.sha256?"),
        (
            "startup = 5",
            "xyz = 10",
            "unknown key agent.xyz; the keys in [agent] are kind, with, seed, startup, model, base_url, key_variable, key_file, \
             format, output_tokens, history_tokens, prompt_tokens, repairs, wait_seconds, build_ahead, search_every, parameters, prices, caps, replay, command",
        ),
    ];
    for (from, to, wanted) in cases {
        let line = line(NANO, from);
        assert_eq!(message(NANO, from, to), format!("line {line}: {wanted}"));
    }
}

#[test]
fn mixed_is_a_kind_and_the_search_in_turn() {
    let agent = |keys: &str| Campaign::parse(&NANO.replace("kind = \"tpe\"", keys)).map(|campaign| campaign.agent);
    let written = "kind = \"mixed\"\nwith = \"replay\"\nreplay = \"recorded\"";
    let mixed = agent(written).expect("valid");
    assert_eq!((mixed.kind, mixed.search_every), (AgentKind::Replay, 2));
    assert_eq!(agent(&format!("{written}\nsearch_every = 5")).expect("valid").search_every, 5);
    for keys in ["kind = \"mixed\"", "kind = \"mixed\"\nwith = \"random\"", "kind = \"mixed\"\nwith = \"mixed\""] {
        assert!(agent(keys).expect_err(keys).contains("say with whom"), "{keys}");
    }
    assert_eq!(agent("kind = \"search\"").expect("its former name").kind, AgentKind::Tpe);
    assert!(agent("kind = \"tpe\"\nwith = \"replay\"").expect_err("not mixed").contains("remove it"));
}

#[test]
fn wrong_values_name_their_key() {
    let cases = [
        (
            "format = \"wiki-docs\"",
            "format = \"wiki-doc\"",
            "data.text[0].format: unknown value \"wiki-doc\"; did you mean \"wiki-docs\"?",
        ),
        (
            "kind = \"tpe\"",
            "kind = \"llm\"",
            "agent.kind: unknown value \"llm\"; use one of search, tpe, random, openai, anthropic, command, replay, mixed",
        ),
        ("window = 256", "window = \"256\"", "evaluation.window: invalid type: string \"256\", expected usize"),
        (
            "train = 0.80, dev",
            "trian = 0.80, dev",
            "unknown key data.text[0].parts.trian; did you mean data.text[0].parts.train?",
        ),
    ];
    for (from, to, wanted) in cases {
        let line = line(NANO, from);
        assert_eq!(message(NANO, from, to), format!("line {line}: {wanted}"));
    }
    let missing = message(NANO, "window = 256", "");
    assert!(missing.ends_with("key evaluation.window is missing; add it"), "{missing}");
    let grouping = message(NANO, "\"row\", \"tensor\"]", "\"rwo\"]");
    assert!(grouping.contains("constraints.groupings[3]"), "{grouping}");
    assert!(message(NANO, "[budget]", "[budget").contains("line"), "a syntax error has its line");
}

#[test]
fn contradictions_say_what_to_do() {
    let cases = [
        (
            NANO,
            "# tokens = 1_000_000 ",
            "tokens = 1_000_000 ",
            "budget.seconds and budget.tokens exclude each other; remove one",
        ),
        (NANO, "seconds = 60.0", "", "[budget] has no limit; set budget.seconds or budget.tokens"),
        (NANO, "seconds = 60.0", "seconds = -1.0", "budget.seconds is -1; it must be a positive number"),
        (
            NANO,
            "hard_limit_seconds = 300.0",
            "hard_limit_seconds = 60.0",
            "budget.hard_limit_seconds is 60, not above budget.seconds (60); leave room for start-up and dev evaluation",
        ),
        (NANO, "train = 0.80, dev", "train = 0.90, dev", "data.text[0].parts sum to 1.1; make the shares sum to 1"),
        (
            NANO,
            "train = 0.80, dev = 0.04",
            "train = -0.16, dev = 1.0",
            "data.text[0].parts.train is -0.16; a share is between 0 and 1",
        ),
        (
            NANO,
            "select = 0.08, report = 0.08",
            "select = 0.16",
            "no text goes to report; give report a share in a [[data.text]]",
        ),
        (
            NANO,
            "train_tokenizer = 2048",
            "",
            "key model.train_tokenizer is missing; a model from scratch needs it: set it to model.scratch.vocab_size, 2048",
        ),
        (
            NANO,
            "train_tokenizer = 2048",
            "train_tokenizer = 1024",
            "model.train_tokenizer is 1024 and model.scratch.vocab_size 2048; make them equal",
        ),
        (NANO, "head_dim = 64", "head_dim = 63", "model.scratch.head_dim is 63; rotary embeddings need an even number"),
        (
            NANO,
            "num_key_value_heads = 4",
            "num_key_value_heads = 3",
            "model.scratch.num_key_value_heads (3) must divide num_attention_heads (4)",
        ),
        (
            NANO,
            "# [model.pretrain]\n# tokens = 10_000_000",
            "[model.pretrain]\ntokens = 0",
            "model.pretrain.tokens is 0; take 1 or more",
        ),
        (
            NANO,
            "# [model.pretrain]\n# tokens = 10_000_000",
            "[model.pretrain]\ntokens = 9\nwindow = 4096",
            "model.pretrain.window is 4096, longer than the model's context of 1024; shorten it",
        ),
        (
            NANO,
            "# [model.pretrain]\n# tokens = 10_000_000",
            "[model.pretrain]\ntokens = 9\nlearning_rate = 0.0",
            "model.pretrain.learning_rate is 0; it must be a positive number",
        ),
        (
            SMOLLM2,
            "[data]",
            "[model.pretrain]\ntokens = 9\n[data]",
            "remove [model.pretrain]; [model.base] brings its own weights",
        ),
        (
            NANO,
            "train_unquantized = true",
            "train_unquantized = false",
            "constraints.train_unquantized is false; from scratch there are no weights to leave alone, set it to true",
        ),
        (
            NANO,
            "[64, 128, 256,",
            "[64, 96, 256,",
            "constraints.groupings: groups of 96 do not divide the rows of self_attn.q_proj (256 weights); use a width that divides every projection's rows",
        ),
        (NANO, "[64, 128, 256,", "[64, 128, 64,", "constraints.groupings[2] repeats 64; remove it"),
        (
            NANO,
            "[64, 128, 256,",
            "[32, 128, 256,",
            "constraints.groupings allows 32, which takes at least 2.100 bits a weight; remove it or raise constraints.max_bits_per_weight (2)",
        ),
        (
            NANO,
            "window = 256",
            "window = 2048",
            "evaluation.window is 2048, longer than the model's context of 1024; shorten it",
        ),
        (
            NANO,
            "window = 256",
            "window = 1",
            "evaluation.window is 1; a window's first token is not scored, so take 2 or more",
        ),
        (
            NANO,
            "# max_tokens = 16384",
            "max_tokens = 16",
            "evaluation.max_tokens is 16, less than one evaluation.window (256); raise it",
        ),
        (
            NANO,
            "dev_tokens = 8192",
            "dev_tokens = 100",
            "evaluation.dev_tokens is 100, less than one evaluation.window (256); raise it",
        ),
        (NANO, "startup = 5", "startup = 0", "agent.startup is 0; the optimizer needs at least 1 random proposal"),
        (
            NANO,
            "sha256 = \"550c",
            "# \"550c",
            "key data.text[0].source.sha256 is missing; give the sha256 of the package's wheel",
        ),
        (
            NANO,
            "sha256 = \"550c",
            "sha256 = \"ANY",
            "data.text[0].source.sha256 is \"ANY0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded\"; give the sha256 of the package's wheel, 64 lower-case hex digits",
        ),
        (
            NANO,
            "path = \"exl",
            "# \"exl",
            "key data.text[0].source.path is missing; name the file inside pip:exllamav3==1.6.5",
        ),
        (
            NANO,
            "pip:exllamav3==1.6.5",
            "pip:exllamav3",
            "data.text[0].source.from: \"pip:exllamav3\" is no source; write pip:NAME==VERSION, hf:OWNER/NAME, hf-dataset:OWNER/NAME or file:PATH",
        ),
        (
            QWEN3,
            "revision = \"main\"",
            "",
            "key model.base.revision is missing; give the commit (or \"main\", which is not pinned)",
        ),
        (
            QWEN3,
            "hf:Qwen/Qwen3-0.6B",
            "hf:Qwen3-0.6B",
            "model.base.from: \"hf:Qwen3-0.6B\" is no source; write pip:NAME==VERSION, hf:OWNER/NAME, hf-dataset:OWNER/NAME or file:PATH",
        ),
        (
            QWEN3,
            "hf-dataset:HuggingFaceFW",
            "hf:HuggingFaceFW",
            "data.text[0].source.from: text comes from a data set; write hf-dataset:OWNER/NAME",
        ),
        (
            SMOLLM2,
            "[data]",
            "[model]\ntrain_tokenizer = 300\n[data]",
            "remove model.train_tokenizer; a base model brings its own tokenizer",
        ),
    ];
    for (campaign, from, to, wanted) in cases {
        assert_eq!(message(campaign, from, to), wanted);
    }
    let scratch = &NANO[NANO.find("\n[model.scratch]").unwrap()..NANO.find("# A base model").unwrap()];
    let both = SMOLLM2.replacen("[data]", &format!("{scratch}\n[data]"), 1);
    assert_eq!(Campaign::parse(&both).unwrap_err(), "[model.scratch] and [model.base] exclude each other; remove one");
}

#[test]
fn a_pretrained_parent_is_one_that_recipes_start_from() {
    let nano = Campaign::parse(NANO).unwrap();
    assert!(!nano.model.has_parent());
    let with = NANO.replacen("# [model.pretrain]\n# tokens = 10_000_000", "[model.pretrain]\ntokens = 9000", 1);
    let protected = with.replacen("train_unquantized = true", "train_unquantized = false", 1);
    for text in [with, protected] {
        let campaign = Campaign::parse(&text).unwrap();
        assert!(campaign.model.has_parent());
        assert_eq!(campaign.model.pretrain.unwrap().steps(), 9, "9000 tokens are 8.8 steps of 8 x 128");
    }
    // What was prepared before keeps its hash.
    assert!(!serde_json::to_string(&nano.model).unwrap().contains("pretrain"));
    let mut other = nano.model.scratch.clone().unwrap();
    other.intermediate_size = 768;
    assert!(nano.check_model(&other).unwrap_err().contains("another shape"));
}

#[test]
fn local_files_are_pinned_or_say_that_they_are_not() {
    let local =
        QWEN3.replacen("hf:Qwen/Qwen3-0.6B", "file:model", 1).replacen("revision = \"main\"", "sha256 = \"any\"", 1);
    let campaign = Campaign::parse(&local).unwrap();
    let source = campaign.model.base.as_ref().unwrap();
    assert_eq!(source.kind(), Ok(SourceKind::File { path: "model".into() }));
    assert_eq!(
        campaign.warnings()[0],
        "model.base: file:model is not pinned and may change; set model.base.sha256 to what prepare records"
    );
    let unpinned = local.replacen("sha256 = \"any\"", "", 1);
    assert_eq!(
        Campaign::parse(&unpinned).unwrap_err(),
        "key model.base.sha256 is missing; give the sha256 of the file (or \"any\", which is not pinned)"
    );
}

#[test]
fn a_base_model_is_checked_when_its_shape_is_known() {
    let campaign = Campaign::parse(SMOLLM2).unwrap();
    let mut config = ModelConfig {
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
    };
    assert_eq!(campaign.check_model(&config), Ok(()));
    config.intermediate_size = 1504;
    assert_eq!(
        campaign.check_model(&config).unwrap_err(),
        "constraints.groupings: groups of 64 do not divide the rows of mlp.down_proj (1504 weights); use a width that \
         divides every projection's rows"
    );
}

#[test]
fn every_committed_campaign_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let names = Campaign::list(&root).unwrap();
    for name in ["llama-3.2-1b", "nano", "qwen3-0.6b", "smollm-135m", "smollm2-135m"] {
        assert!(names.iter().any(|known| known == name), "{name} is missing from {names:?}");
    }
    for name in names {
        let campaign = Campaign::load(&Campaign::find(&root, &name).unwrap()).unwrap();
        let hub = ["llama-3.2-1b", "qwen3-0.6b", "smollm-135m"].contains(&name.as_str());
        assert_eq!(campaign.warnings().len(), if hub { 4 } else { 0 }, "{name}");
        // What is written out is a campaign again: the orchestrator keeps a copy with each run.
        let written = toml::to_string(&campaign).unwrap();
        assert_eq!(Campaign::parse(&written).unwrap(), campaign);
    }
}

#[test]
fn the_documented_file_shows_every_key_with_its_default() {
    let nano = Campaign::parse(NANO).unwrap();
    assert_eq!(nano.budget.limit(), Limit::Seconds(60.0));
    assert_eq!(nano.constraints.groupings[3..], [Grouping::Row, Grouping::Tensor]);
    assert_eq!(nano.agent, Agent::default());
    // Keys that the comments give a default for can be left out without a change.
    let mut short = String::new();
    for line in NANO.lines() {
        let key = line.split(" =").next().unwrap_or_default();
        let optional = [
            "sandbox",
            "sandbox_read",
            "decontaminate",
            "warmup_steps",
            "grace_seconds",
            "disk_gb",
            "dev_tokens",
            "dev_evals",
            "precision",
        ];
        if !optional.contains(&key) {
            short += line;
            short.push('\n');
        }
    }
    let short = short.split("[agent]").next().unwrap();
    assert_eq!(Campaign::parse(short).unwrap(), nano);
    // A campaign with every optional key names no key that the documented file does not.
    for text in [NANO, SMOLLM2, QWEN3] {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((key, _)) = line.split_once(" =") {
                assert!(NANO.contains(&format!("{key} =")), "{key} is not documented");
            }
        }
    }
}

#[test]
fn an_unknown_campaign_lists_the_known() {
    let root = tempfile::tempdir().unwrap();
    let none = Campaign::find(root.path(), "nano").unwrap_err();
    assert!(none.to_string().starts_with("cannot read "), "{none}");
    for name in ["nano", "smollm2-135m"] {
        let folder = root.path().join("experiments").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("campaign.toml"), "").unwrap();
    }
    std::fs::create_dir(root.path().join("experiments/empty")).unwrap();
    let find = |name: &str| Campaign::find(root.path(), name).map_err(|e| e.to_string());
    assert_eq!(find("nano").unwrap(), root.path().join("experiments/nano/campaign.toml"));
    assert_eq!(
        find("smolm2").unwrap_err(),
        "no campaign \"smolm2\" (did you mean \"smollm2-135m\"?); there are: nano, smollm2-135m"
    );
    assert_eq!(find("../nano").unwrap_err(), "no campaign \"../nano\"; there are: nano, smollm2-135m");
    assert_eq!(find("zzz").unwrap_err(), "no campaign \"zzz\"; there are: nano, smollm2-135m");
}

#[test]
fn a_language_model_needs_its_settings() {
    let with = |kind: &str| NANO.replacen("kind = \"tpe\"\n", kind, 1);
    let refused = |kind: &str| Campaign::parse(&with(kind)).expect_err(kind);
    assert!(refused("kind = \"openai\"\n").contains("agent.model is missing"));
    assert!(refused("kind = \"replay\"\n").contains("agent.replay is missing"));
    let priceless = refused("kind = \"anthropic\"\nmodel = \"m\"\ncaps = { dollars = 1.0 }\n");
    assert!(priceless.contains("needs [agent.prices]"), "{priceless}");
    let agent =
        Campaign::parse(&with("kind = \"openai\"\nmodel = \"m\"\nparameters = { temperature = 0.5 }\n")).unwrap().agent;
    assert!(agent.kind.writes_code() && agent.parameters["temperature"].as_float() == Some(0.5));
}

#[test]
fn a_command_says_what_it_is_and_what_it_may_use() {
    let with = |command: &str| NANO.replacen("kind = \"tpe\"\n", &format!("kind = \"command\"\n{command}"), 1);
    let refused = |command: &str| Campaign::parse(&with(command)).expect_err(command);
    for (command, wanted) in [
        ("", "agent.command is missing"),
        ("command = {}\n", "neither preset nor argv"),
        ("command = { preset = \"claude\", argv = [\"x\"] }\n", "exclude each other"),
        ("command = { argv = [\"\"] }\n", "an empty word"),
        (
            "command = { preset = \"cloud\" }\n",
            "agent.command.preset: unknown value \"cloud\"; did you mean \"claude\"?",
        ),
        (
            "command = { preset = \"mine\" }\n",
            "agent.command.preset: unknown value \"mine\"; use one of claude, codex, gemini, aider, opencode",
        ),
        ("command = { argv = [\"x\"], prompt = \"file\" }\n", "no argument says {prompt_file}"),
        ("command = { argv = [\"x\", \"{prompt_file}\"] }\n", "set agent.command.prompt to \"file\""),
        ("command = { argv = [\"x\"], seconds = 0.0 }\n", "agent.command.seconds is 0"),
        ("command = { argv = [\"x\"], variables = [\"KEY=secret\"] }\n", "no name of a variable"),
        ("command = { argv = [\"x\"], home = [\"../other\"] }\n", "no path below the home folder"),
        ("command = { argv = [\"x\"], home = [\"~/.x\"] }\n", "write it without `~/`"),
        ("command = { argv = [\"x\"], home = [\".x\"] }\nkey_variable = \"K\"\n", "are of endpoints"),
        ("command = { argv = [\"x\"], write = [\"data\"] }\n", "is relative"),
        ("command = { argv = [\"x\"], netwrok = true }\n", "did you mean agent.command.network?"),
    ] {
        let said = refused(command);
        assert!(said.contains(wanted), "{command}: {said}");
    }
    let given = "command = { argv = [\"x\", \"{prompt_file}\"], prompt = \"file\", output = \"opencode-json\" }\n";
    let agent = Campaign::parse(&with(given)).unwrap().agent;
    assert!(agent.kind.writes_code() && agent.answer_format() == AnswerFormat::InPlace);
    let command = agent.command.unwrap();
    assert_eq!((command.seconds, command.output), (600.0, Some(command::Output::OpenCodeJson)));
    let blocks = Campaign::parse(&with("command = { preset = \"codex\" }\nformat = \"blocks\"\n")).unwrap().agent;
    assert_eq!(blocks.answer_format(), AnswerFormat::Blocks);
}
