//! The table that `results` prints, one line of it, and the figures below it.

use std::collections::BTreeMap;
use std::fmt::Write;

use formats::campaign;
use formats::corpus::Part;
use serde::Serialize;

use super::kept::{Figures, Gain, Kept, Mean, figures, kept};
use super::{description, figure, short};
use crate::agent::Cost;
use crate::layout::Layout;
use crate::ledger::{Evaluation, Replicate, Row, State, Status, Time, WastedRequest};
use crate::verdict::Noise;

/// One experiment in one line, as `run` prints it.
pub fn line(row: &Row) -> String {
    let figures = match (&row.evaluation, row.gain) {
        (Some(evaluation), Some(gain)) => format!("{:>14} {gain:>+10.6}", figure(evaluation.eval_ppl, 6)),
        _ => format!("{:>14} {:>10}", "-", "-"),
    };
    let memory = row.trained.as_ref().map_or(0.0, |t| t.memory as f64 / f64::from(1 << 30));
    let seconds = figure(row.trained.as_ref().map_or(0.0, |t| t.train_s), 0);
    format!(
        "{:>4} {} {:<7} {figures} {memory:>5.1} {seconds:>6} {:<8} {}",
        row.experiment,
        short(&row.commit),
        row.status.name(),
        row.agent,
        description(row)
    )
}

/// Names of the columns of [`line()`]. The gain is in nats per token over the parent.
pub fn header() -> String {
    format!(
        "{:>4} {:<7} {:<7} {:>14} {:>10} {:>5} {:>6} {:<8} {}",
        "#", "commit", "status", "eval_ppl", "gain", "GB", "sec", "agent", "description"
    )
}

/// The whole table.
pub fn print(state: &State) -> String {
    let mut text = header() + "\n";
    for row in &state.rows {
        let cost = state.proposals.get(&row.experiment).and_then(|proposed| proposed.cost);
        let cost = cost.map_or_else(String::new, |cost| format!(" [{}]", price(&cost)));
        let _ = writeln!(text, "{}{cost}", line(row));
    }
    for line in summary(state) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What the search found: baseline, best and full-precision parent on `select`, and on `report` where that was measured.
pub fn summary(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(best) = state.incumbent() else { return lines };
    let of = |status| state.rows.iter().filter(|row| row.status == status).count();
    lines.push(format!(
        "{} experiments: {} kept, {} discarded, {} crashed, {} timed out, {} invalid",
        state.rows.len(),
        of(Status::Keep),
        of(Status::Discard),
        of(Status::Crash),
        of(Status::Timeout),
        of(Status::Invalid),
    ));
    lines.extend(figures(state, Part::Select).map(|found| means("select", &found, state.full_precision.as_ref())));
    if let Some(spread) = state.noise() {
        lines.push(noise(&spread, best));
    }
    lines.extend(time(&state.time));
    if let Some(cost) = state.cost() {
        let (calls, seconds, vain) = (cost.calls, cost.seconds, state.wasted_requests.len());
        let vain = if vain == 0 { String::new() } else { format!("; {vain} times nothing came of it") };
        lines.push(format!("language models: {calls} calls, {}, {seconds:.0} s{vain}", price(&cost)));
    }
    let full_precision = state.reported.get(&(None, None));
    lines.extend(figures(state, Part::Report).map(|found| means("report", &found, full_precision)));
    lines.extend(kept(state).iter().filter_map(gains));
    lines
}

/// Tokens, and dollars where prices are known.
fn price(cost: &Cost) -> String {
    let dollars = cost.dollars.map_or_else(String::new, |dollars| format!(", ${dollars:.4}"));
    format!("{} tokens{dollars}", cost.usage.total())
}

/// Where the time went.
fn time(time: &Time) -> Option<String> {
    let share = |seconds: f64| 100.0 * seconds / time.worked;
    let before = time.building + time.rehearsing;
    let listed = time.training + time.overhead + before + time.evaluating + time.thinking;
    (time.worked > 0.0).then(|| {
        format!(
            "{:.2} h: {:.0} % training, {:.0} % its start and export, {:.0} % building and trying, {:.0} % evaluating, \
             {:.0} % thinking, {:.0} % other",
            time.worked / 3600.0,
            share(time.training),
            share(time.overhead),
            share(before),
            share(time.evaluating),
            share(time.thinking),
            share((time.worked - listed).max(0.0)),
        )
    })
}

/// What a kept experiment gained over the baseline, from runs that had no part in its being kept.
fn gains(kept: &Kept) -> Option<String> {
    let select = kept.select.as_ref()?;
    let report = kept.report.as_ref().map_or_else(
        || "; report is not measured yet".to_owned(),
        |report| format!("; on report {} (ppl {:.6})", interval(report), kept.report_ppl.unwrap_or(f64::NAN)),
    );
    let won = kept.won_by.map_or_else(String::new, |gain| format!(" was kept by {gain:+.6} nats;"));
    let (number, commit) = (kept.experiment, short(kept.commit));
    Some(format!("#{number} {commit}{won} over the baseline on select {}{report}", interval(select)))
}

/// A gain with its 95 % interval, and the runs that it is taken from.
fn interval(gain: &Gain) -> String {
    let around = gain.half_interval.map_or_else(String::new, |half| format!(" ± {half:.6}"));
    format!("{:+.6}{around} ({} and {} runs)", gain.nats, gain.baseline_runs, gain.runs)
}

/// The noise in one line, in the loss's unit and in the metric's at a row.
pub fn noise(noise: &Noise, row: &Row) -> String {
    if noise.is_blind() {
        return "the recipe gives the same loss to the bit with every seed: luck cannot be measured, so any gain of \
                noise.min_gain that stands out from the windows of the text is kept; take another budget or a recipe that \
                uses its seed"
            .into();
    }
    let ppl = row.evaluation.as_ref().map_or(f64::NAN, |evaluation| evaluation.eval_ppl);
    format!(
        "run-to-run noise: {:.6} ± {:.6} nats (standard deviation, {} degrees of freedom), about {:.6} of perplexity \
         {ppl:.6}",
        noise.sd,
        noise.error,
        noise.freedom,
        ppl * noise.sd,
    )
}

/// Says that the noise is too large for the campaign's margin, where it is.
pub fn unsupported(noise: &Noise, settings: &campaign::Noise) -> Option<String> {
    let least = noise.least_margin(settings);
    (settings.replicates > 0 && least > settings.margin).then(|| {
        format!(
            "noise.margin = {} is below {least:.6}, the least that {} runs can show of an equal recipe at this noise: a \
             smaller recipe is kept only when it gains",
            settings.margin, settings.max_runs
        )
    })
}

fn means(part: &str, found: &Figures, full_precision: Option<&Evaluation>) -> String {
    let mean = |mean: &Mean| {
        let around = mean.half_interval.map_or_else(String::new, |half| format!(" ± {:.6}", mean.perplexity * half));
        format!("ppl {:.6}{around}", mean.perplexity)
    };
    let runs = |mean: &Mean| match (mean.selected, mean.runs) {
        (true, _) => "only the run that selected it".to_owned(),
        (false, 1) => "1 run".to_owned(),
        (false, runs) => format!("{runs} runs"),
    };
    let (baseline, best) = (&found.baseline, &found.best);
    let full_precision = full_precision.map_or_else(String::new, |f| format!("; full precision {:.6}", f.eval_ppl));
    let first = format!("{part}: baseline {} ({})", mean(baseline), runs(baseline));
    let Some(gain) = &found.gain else { return format!("{first}, still the best{full_precision}") };
    let change = (best.perplexity / baseline.perplexity - 1.0) * 100.0;
    let around = gain.half_interval.map_or_else(String::new, |half| format!(" ± {half:.6}"));
    format!(
        "{first}, best {} (#{} {}, {}): {change:+.2} %, {:+.6}{around} nats (means, 95 % intervals){full_precision}",
        mean(best),
        best.experiment,
        short(&best.commit),
        runs(best),
        gain.nats,
    )
}

/// What `results --json` prints.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    /// Campaign of the search.
    campaign: &'a str,
    /// Its tag.
    tag: &'a str,
    /// Its rows, oldest first.
    experiments: &'a [Row],
    /// The full-precision parent on `select`.
    full_precision: Option<&'a Evaluation>,
    /// Final figures on `report`.
    report: Vec<Final<'a>>,
    /// Measurements of the same commits with other seeds.
    replicates: &'a [Replicate],
    /// What they say of the noise.
    noise: Option<Noise>,
    /// What each kept experiment gained over the baseline, with intervals.
    kept: Vec<Kept<'a>>,
    /// What asking language models took, by experiment.
    costs: BTreeMap<u64, Cost>,
    /// What they were asked in vain.
    wasted_requests: &'a [WastedRequest],
}

/// A final figure; the full-precision parent has no experiment.
#[derive(Debug, Serialize)]
struct Final<'a> {
    experiment: Option<u64>,
    replicate: Option<u64>,
    evaluation: &'a Evaluation,
}

impl<'a> Document<'a> {
    /// The view of a state.
    pub fn of(layout: &'a Layout, state: &'a State) -> Self {
        let report = state.reported.iter().map(|(&(experiment, replicate), evaluation)| Final {
            experiment,
            replicate,
            evaluation,
        });
        Self {
            campaign: &layout.name,
            tag: &layout.tag,
            experiments: &state.rows,
            full_precision: state.full_precision.as_ref(),
            report: report.collect(),
            replicates: &state.replicates,
            noise: state.noise(),
            kept: kept(state),
            costs: state.proposals.iter().filter_map(|(&number, proposed)| Some((number, proposed.cost?))).collect(),
            wasted_requests: &state.wasted_requests,
        }
    }
}
