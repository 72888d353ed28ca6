//! What a campaign may not say. Every message names the key and what to do.

use crate::artifact::{Grouping, ModelConfig, ProjectionKind};

use crate::campaign::{AgentKind, AnswerFormat, Campaign, Part};

/// Bits that a code takes in an artifact: five in a byte. Rows that are no multiple of five take a little more.
const CODE_BITS: f64 = 1.6;
/// Bits of a stored scale.
const SCALE_BITS: f64 = 16.0;
/// Fewest ids of a byte-level tokenizer: the bytes and the end token.
const FEWEST_IDS: usize = 257;

impl Campaign {
    /// Checks that the campaign does not contradict itself.
    ///
    /// # Errors
    /// The first contradiction, for people: the key and what to do.
    pub fn check(&self) -> Result<(), String> {
        let description = self.description.trim();
        if description.is_empty() || description.contains('\n') {
            return Err("description: say in one line what is being learnt".into());
        }
        self.check_model_section()?;
        self.check_data()?;
        self.check_budget()?;
        self.check_evaluation()?;
        self.check_constraints()?;
        self.check_noise()?;
        self.check_agent()?;
        match &self.model.scratch {
            Some(config) => self.check_model(config),
            None => Ok(()),
        }
    }

    /// Checks the campaign against the model's shape. [`Campaign::check`] does so for a model from scratch; call this
    /// when the configuration of a base model is known.
    ///
    /// # Errors
    /// The first contradiction, for people.
    pub fn check_model(&self, config: &ModelConfig) -> Result<(), String> {
        if self.model.scratch.as_ref().is_some_and(|shape| shape != config) {
            return Err("the prepared model has another shape than [model.scratch]; run `prepare` again".into());
        }
        let window = self.evaluation.window;
        if window > config.max_position_embeddings {
            return Err(format!(
                "evaluation.window is {window}, longer than the model's context of {}; shorten it",
                config.max_position_embeddings
            ));
        }
        for grouping in &self.constraints.groupings {
            let Grouping::Group(width) = grouping else {
                continue;
            };
            for kind in ProjectionKind::ALL {
                let columns = config.projection_shape(kind)[1];
                if !columns.is_multiple_of(*width) {
                    return Err(format!(
                        "constraints.groupings: groups of {width} do not divide the rows of {} ({columns} weights); \
                         use a width that divides every projection's rows",
                        kind.module()
                    ));
                }
            }
        }
        Ok(())
    }

    /// What is allowed but may surprise: sources that are not pinned.
    pub fn warnings(&self) -> Vec<String> {
        let base = self.model.base.iter().map(|source| ("model.base".to_owned(), source));
        let text = self.data.text.iter().enumerate();
        let text = text.map(|(i, text)| (format!("data.text[{i}].source"), &text.source));
        base.chain(text)
            .filter(|(_, source)| !source.pinned())
            .map(|(key, source)| {
                let pin = source.revision.as_ref().map_or("sha256", |_| "revision");
                format!("{key}: {} is not pinned and may change; set {key}.{pin} to what prepare records", source.from)
            })
            .collect()
    }

    fn check_model_section(&self) -> Result<(), String> {
        let model = &self.model;
        match (&model.scratch, &model.base) {
            (None, None) => Err("[model] is empty; add [model.scratch] (a shape, random weights) or [model.base] \
                                 (pretrained weights)"
                .into()),
            (Some(_), Some(_)) => Err("[model.scratch] and [model.base] exclude each other; remove one".into()),
            (None, Some(_)) if model.pretrain.is_some() => {
                Err("remove [model.pretrain]; [model.base] brings its own weights".into())
            }
            (None, Some(source)) => {
                if model.train_tokenizer.is_some() {
                    return Err("remove model.train_tokenizer; a base model brings its own tokenizer".into());
                }
                source.check("model.base", false)
            }
            (Some(config), None) => {
                config.check().map_err(|reason| format!("model.scratch.{reason}"))?;
                let Some(ids) = model.train_tokenizer else {
                    return Err(format!(
                        "key model.train_tokenizer is missing; a model from scratch needs it: set it to \
                         model.scratch.vocab_size, {}",
                        config.vocab_size
                    ));
                };
                if ids != config.vocab_size {
                    return Err(format!(
                        "model.train_tokenizer is {ids} and model.scratch.vocab_size {}; make them equal",
                        config.vocab_size
                    ));
                }
                if ids < FEWEST_IDS {
                    return Err(format!(
                        "model.train_tokenizer is {ids}; 256 bytes and the end token need at least {FEWEST_IDS}"
                    ));
                }
                model.pretrain.map_or(Ok(()), |pretrain| pretrain.check(config))
            }
        }
    }

    fn check_data(&self) -> Result<(), String> {
        let data = &self.data;
        if data.max_train_tokens == Some(0) {
            return Err("data.max_train_tokens is 0; give a number of tokens or remove it".into());
        }
        if data.text.is_empty() {
            return Err("data.text is empty; add a [[data.text]]".into());
        }
        for (i, text) in data.text.iter().enumerate() {
            let key = format!("data.text[{i}]");
            text.source.check(&format!("{key}.source"), true)?;
            if let Some((part, share)) = text.parts.iter().find(|(_, s)| !(0.0..=1.0).contains(*s)) {
                return Err(format!("{key}.parts.{part} is {share}; a share is between 0 and 1"));
            }
            let sum: f64 = text.parts.values().sum();
            if (sum - 1.0).abs() > 1e-6 {
                let sum = (sum * 1e6).round() / 1e6;
                return Err(format!("{key}.parts sum to {sum}; make the shares sum to 1"));
            }
        }
        for part in Part::ALL {
            let share = |text: &crate::campaign::Text| text.parts.get(&part).copied().unwrap_or_default();
            if !data.text.iter().any(|text| share(text) > 0.0) {
                return Err(format!("no text goes to {part}; give {part} a share in a [[data.text]]"));
            }
        }
        Ok(())
    }

    fn check_budget(&self) -> Result<(), String> {
        let budget = &self.budget;
        positive("budget.hard_limit_seconds", budget.hard_limit_seconds)?;
        positive("budget.grace_seconds", budget.grace_seconds)?;
        positive("budget.disk_gb", budget.disk_gb)?;
        budget.memory_gb.map_or(Ok(()), |most| positive("budget.memory_gb", most))?;
        match (budget.seconds, budget.tokens) {
            (None, None) => Err("[budget] has no limit; set budget.seconds or budget.tokens".into()),
            (Some(_), Some(_)) => Err("budget.seconds and budget.tokens exclude each other; remove one".into()),
            (None, Some(0)) => Err("budget.tokens is 0; give a number of tokens".into()),
            (None, Some(_)) => Ok(()),
            (Some(seconds), None) => {
                positive("budget.seconds", seconds)?;
                let limit = budget.hard_limit_seconds;
                if limit <= seconds {
                    return Err(format!(
                        "budget.hard_limit_seconds is {limit}, not above budget.seconds ({seconds}); leave room for \
                         start-up and dev evaluation"
                    ));
                }
                Ok(())
            }
        }
    }

    fn check_evaluation(&self) -> Result<(), String> {
        let evaluation = &self.evaluation;
        let window = evaluation.window;
        if window < 2 {
            return Err(format!(
                "evaluation.window is {window}; a window's first token is not scored, so take 2 or more"
            ));
        }
        if let Some(tokens) = evaluation.max_tokens.filter(|&tokens| tokens < window) {
            return Err(format!(
                "evaluation.max_tokens is {tokens}, less than one evaluation.window ({window}); raise it"
            ));
        }
        if evaluation.dev_evals > 0 && evaluation.dev_tokens < window {
            return Err(format!(
                "evaluation.dev_tokens is {}, less than one evaluation.window ({window}); raise it",
                evaluation.dev_tokens
            ));
        }
        Ok(())
    }

    fn check_agent(&self) -> Result<(), String> {
        let agent = &self.agent;
        if agent.startup == 0 {
            return Err("agent.startup is 0; the optimizer needs at least 1 random proposal".into());
        }
        let kind = agent.kind.name();
        let asks = matches!(agent.kind, AgentKind::OpenAi | AgentKind::Anthropic);
        if asks && agent.model.as_deref().is_none_or(|model| model.trim().is_empty()) {
            return Err(format!("agent.model is missing; with agent.kind = {kind:?} name the model that is asked"));
        }
        if agent.kind == AgentKind::Replay && agent.replay.is_none() {
            return Err("agent.replay is missing; name the folder of recorded exchanges".into());
        }
        match (&agent.command, agent.kind) {
            (Some(command), _) => command.check()?,
            (None, AgentKind::Command) => {
                return Err(
                    "agent.command is missing; name a preset, as in command = { preset = \"claude\" }, or an argv"
                        .into(),
                );
            }
            (None, _) => {}
        }
        if asks && agent.format == Some(AnswerFormat::InPlace) {
            return Err(format!("agent.format is \"in-place\", and {kind:?} has no folder to work in; use \"blocks\""));
        }
        if agent.kind == AgentKind::Command && (agent.key_variable.is_some() || agent.key_file.is_some()) {
            return Err("agent.key_variable and agent.key_file are of endpoints; name a program's in \
                        agent.command.variables, or its files in agent.command.home"
                .into());
        }
        if agent.key_variable.is_some() && agent.key_file.is_some() {
            return Err("agent.key_variable and agent.key_file exclude each other; remove one".into());
        }
        if !(agent.wait_seconds.is_finite() && agent.wait_seconds >= 0.0) {
            return Err(format!("agent.wait_seconds is {}; give seconds, 0 or more", agent.wait_seconds));
        }
        if agent.output_tokens == 0 {
            return Err("agent.output_tokens is 0; an answer needs some".into());
        }
        if agent.caps.dollars.is_some() && agent.prices.is_none() {
            return Err("agent.caps.dollars needs [agent.prices]; add them, or cap tokens or calls".into());
        }
        Ok(())
    }

    fn check_noise(&self) -> Result<(), String> {
        let noise = &self.noise;
        if noise.replicates == 0 {
            return Ok(());
        }
        for (key, value) in [("level", noise.level), ("borderline", noise.borderline)] {
            if !(value > 0.0 && value < 0.5) {
                return Err(format!("noise.{key} is {value}; it is a probability above 0 and below 0.5"));
            }
        }
        for (key, value) in [("min_gain", noise.min_gain), ("margin", noise.margin)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("noise.{key} is {value}; it is in nats per token, above 0"));
            }
        }
        if noise.fresh_runs == 0 {
            return Err("noise.fresh_runs is 0; the lucky run that was kept would be the bar, so take 1 or more".into());
        }
        if noise.max_runs < 2 {
            return Err(format!(
                "noise.max_runs is {}; a borderline candidate needs a second run, so take 2 or more (or set \
                 noise.replicates to 0 to keep whatever measures lower)",
                noise.max_runs
            ));
        }
        Ok(())
    }

    fn check_constraints(&self) -> Result<(), String> {
        let constraints = &self.constraints;
        let limit = constraints.max_bits_per_weight;
        positive("constraints.max_bits_per_weight", limit)?;
        let groupings = &constraints.groupings;
        if groupings.is_empty() {
            return Err("constraints.groupings is empty; allow \"tensor\", \"row\" or a width".into());
        }
        if groupings.contains(&Grouping::Group(0)) {
            return Err("constraints.groupings: a group has at least 1 weight".into());
        }
        if let Some((i, twice)) = groupings.iter().enumerate().find(|(i, grouping)| groupings[..*i].contains(grouping))
        {
            return Err(format!("constraints.groupings[{i}] repeats {twice}; remove it"));
        }
        let least = |grouping: &Grouping| match grouping {
            Grouping::Group(width) => CODE_BITS + SCALE_BITS / *width as f64,
            Grouping::Row | Grouping::Tensor => CODE_BITS,
        };
        if let Some(grouping) = groupings.iter().find(|grouping| least(grouping) > limit) {
            return Err(format!(
                "constraints.groupings allows {grouping}, which takes at least {:.3} bits a weight; remove it or raise \
                 constraints.max_bits_per_weight ({limit})",
                least(grouping)
            ));
        }
        if !self.model.has_parent() && !constraints.train_unquantized {
            return Err("constraints.train_unquantized is false; from scratch there are no weights to leave \
                        alone, set it to true"
                .into());
        }
        Ok(())
    }
}

pub(crate) fn positive(key: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(format!("{key} is {value}; it must be a positive number"))
}
