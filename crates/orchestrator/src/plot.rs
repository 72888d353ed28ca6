//! The search drawn over its experiments, in the manner of K's plot: grey discards, green keeps with short labels, and
//! the running best as a stepped line. SVG, so that it is sharp everywhere and a diff can be read.

use std::path::Path;

use language_model::one_line;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One experiment of a search, in the order of the ledger.
#[derive(Debug, Clone)]
pub struct Point {
    /// Number in its campaign, from 1.
    pub experiment: u64,
    /// Perplexity on `select`, as [`crate::results::drawn`] has it; `None` when nothing was measured.
    pub eval_ppl: Option<f64>,
    /// Whether it was kept.
    pub kept: bool,
    /// What it changed.
    pub description: String,
}

/// Width and height of the picture in pixels.
const SIZE: (u32, u32) = (1000, 520);
/// Longest label beside a kept experiment, in characters.
const LABEL: usize = 34;
/// Room above the baseline, in spreads between baseline and best; what is worse is drawn at the edge.
const HEADROOM: f64 = 0.15;
/// Heights, in pixels above their points, that labels take in turn, so that neighbours do not cover each other.
const LABEL_HEIGHTS: [i32; 3] = [-6, -20, -34];

/// Writes the plot of `points` to `path` as SVG.
///
/// # Errors
/// When nothing was measured, or the file cannot be written; as a message for people.
pub fn write(path: &Path, campaign: &str, points: &[Point]) -> Result<(), String> {
    let measured: Vec<(f64, f64)> = points.iter().filter_map(|p| Some((p.experiment as f64, p.eval_ppl?))).collect();
    let Some(&(_, baseline)) = measured.first() else {
        return Err("no experiment has a measurement yet: there is nothing to draw".into());
    };
    let best = measured.iter().map(|&(_, ppl)| ppl).fold(f64::INFINITY, f64::min);
    let worst = measured.iter().map(|&(_, ppl)| ppl).fold(0.0, f64::max);
    let spread = (baseline - best).max(baseline * 0.01);
    let (low, high) = (best - 0.2 * spread, worst.min(baseline + HEADROOM * spread) + 0.1 * spread);
    let last = points.iter().map(|p| p.experiment).max().unwrap_or(1) as f64;
    let kept: Vec<&Point> = points.iter().filter(|p| p.kept && p.eval_ppl.is_some()).collect();

    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let title =
            format!("{campaign}: {} experiments, {} kept improvements", points.len(), kept.len().saturating_sub(1));
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..last + 1.0, low..high)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .x_desc("experiment")
            .y_desc("eval_ppl on select (kept: mean; others: first run)")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.1}"))
            .draw()?;
        let clipped = |ppl: f64| ppl.min(high);
        chart.draw_series(
            points
                .iter()
                .filter(|p| !p.kept)
                .filter_map(|p| Some((p.experiment as f64, clipped(p.eval_ppl?))))
                .map(|at| Circle::new(at, 3, BLACK.mix(0.3).filled())),
        )?;
        let green = RGBColor(46, 160, 67);
        let mut steps = Vec::new();
        for point in &kept {
            let at = (point.experiment as f64, point.eval_ppl.unwrap_or(baseline));
            if let Some(&(_, before)) = steps.last() {
                steps.push((at.0, before));
            }
            steps.push(at);
        }
        if let Some(&(_, ppl)) = steps.last() {
            steps.push((last, ppl));
        }
        chart.draw_series(LineSeries::new(steps, green.stroke_width(2)))?;
        for (point, height) in kept.iter().zip(LABEL_HEIGHTS.into_iter().cycle()) {
            let at = (point.experiment as f64, point.eval_ppl.unwrap_or(baseline));
            // Labels of the last third grow to the left, so that the edge does not cut them.
            let (side, offset) = if at.0 > last * 2.0 / 3.0 { (HPos::Right, -6) } else { (HPos::Left, 6) };
            let style = ("sans-serif", 11).into_font().color(&BLACK.mix(0.7)).pos(Pos::new(side, VPos::Bottom));
            chart.draw_series([EmptyElement::at(at)
                + Circle::new((0, 0), 4, green.filled())
                + Text::new(one_line(&point.description, LABEL), (offset, height), style)])?;
        }
        root.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("cannot draw {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use language_model::is_deceptive;

    use super::*;

    fn point(experiment: u64, eval_ppl: Option<f64>, kept: bool) -> Point {
        let description = format!("change <{experiment}>\u{202e} of a\u{1b}\u{e0041} knob with a rather long name");
        Point { experiment, eval_ppl, kept, description }
    }

    #[test]
    fn draws_every_kept_experiment_and_escapes_descriptions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let points =
            [point(1, Some(90.0), true), point(2, None, false), point(3, Some(80.0), true), point(4, Some(1e9), false)];
        write(file.path(), "nano", &points).unwrap();
        let svg = std::fs::read_to_string(file.path()).unwrap();
        assert!(svg.contains("nano: 4 experiments, 1 kept improvements"), "{svg}");
        assert_eq!(svg.matches("change &lt;").count(), 2, "labels of the two kept ones, escaped");
        assert!(svg.contains('…') && !svg.contains(is_deceptive));
    }

    #[test]
    fn refuses_when_nothing_was_measured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(write(file.path(), "nano", &[point(1, None, false)]).is_err());
    }
}
