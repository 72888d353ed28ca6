//! Grids that no artifact holds: their gradients against autograd, λ, and what they say when they are exported.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use formats::artifact::Grouping;
use tch::{Kind, Tensor};
use ternary::grid::{Grid, GridWeight, Levels};

const GROUPINGS: [Grouping; 3] = [Grouping::Tensor, Grouping::Row, Grouping::Group(16)];
const GRIDS: [Grid; 6] = [
    Grid::StretchedTwoBit,
    Grid::Lsq { bits: 3 },
    Grid::Lsq { bits: 4 },
    Grid::Dlt,
    Grid::Affine { bits: 2 },
    Grid::Affine { bits: 4 },
];

fn weights() -> Tensor {
    draws::seed(21);
    normal([8, 64]) * 0.02 * normal([8, 1]).exp()
}

#[track_caller]
fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).double_value(&[]);
    assert!(error <= tolerance, "differs by {error} of the largest");
}

/// `scales` over the weights that they belong to, by operations that autograd follows.
fn spread(scales: &Tensor) -> Tensor {
    match scales.size()[..] {
        [_, groups] => scales.unsqueeze(-1).expand([8, groups, 64 / groups], false).reshape([8, 64]),
        _ => scales.expand([8, 64], false),
    }
}

/// round(x), to the last bit, whose gradient is that of x.
fn round_through(x: &Tensor) -> Tensor {
    x.detach().round() + (x - x.detach())
}

/// The papers' forward passes, written with straight-through rounding for autograd; and the factor of dα.
fn forward(grid: Grid, w: &Tensor, alpha: &Tensor, offset: Option<&Tensor>) -> (Tensor, f64) {
    let x = w / alpha;
    let count = w.numel() as f64;
    match grid {
        Grid::StretchedTwoBit => {
            let inside = x.abs().le(0.99);
            let level = ((x.detach().clamp(-0.99, 0.99) * 2.0 - 0.5).round() + 0.5) / 2.0;
            let within = &level + (&x - x.detach());
            (within.where_self(&inside, &level) * alpha, 1.0 / count.sqrt())
        }
        Grid::Lsq { bits } => {
            let most = f64::from(1u32 << (bits - 1)) - 1.0;
            (round_through(&x.clamp(-most - 1.0, most)) * alpha, 1.0 / (count * most).sqrt())
        }
        Grid::Dlt => {
            // The shift has no factor: it is left out here and checked apart.
            (round_through(&x.clamp(-1.0, 1.0)) * alpha, 1.0 / count.sqrt())
        }
        Grid::Affine { bits } => {
            let most = f64::from(1u32 << bits) - 1.0;
            let zero = round_through(offset.expect("z"));
            (((round_through(&x) + &zero).clamp(0.0, most) - zero) * alpha, 1.0)
        }
    }
}

/// Scales that put some weights beyond every grid, so that both branches of the rules are seen.
fn narrow(grid: Grid, w: &Tensor, grouping: Grouping) -> Levels {
    let levels = grid.start(w, grouping);
    Levels { scales: levels.scales * 0.6, offsets: levels.offsets }
}

#[test]
fn gradients_are_those_of_the_papers() {
    let (w, gradient) = (weights(), normal([8, 64]));
    for grid in GRIDS {
        for grouping in GROUPINGS {
            let levels = narrow(grid, &w, grouping);
            let got = grid.gradients(&w, &levels, &gradient);
            assert!(
                got.master.eq(0.0).any().int64_value(&[]) == 1,
                "{grid:?} {grouping:?}: nothing is beyond the grid"
            );
            let master = w.copy().set_requires_grad(true);
            let alpha = levels.scales.copy().set_requires_grad(true);
            let offset = levels.offsets.as_ref().map(|offset| offset.copy().set_requires_grad(true));
            let wide = offset.as_ref().map(spread);
            let (quantized, factor) = forward(grid, &master, &spread(&alpha), wide.as_ref());
            close(&grid.values(&w, &levels), &quantized.detach(), 1e-6);
            (quantized * &gradient).sum(Kind::Float).backward();
            close(&got.master, &master.grad(), 1e-5);
            close(&got.levels.scales, &(alpha.grad() * factor), 1e-5);
            match (grid, got.levels.offsets) {
                (Grid::Affine { .. }, Some(given)) => close(&given, &offset.expect("z").grad(), 1e-5),
                (Grid::Dlt, Some(given)) => {
                    close(&spread(&given).mean(Kind::Float), &group_sums(&gradient, grouping), 1e-4)
                }
                (_, given) => assert!(given.is_none()),
            }
        }
    }
}

/// Mean over the groups of their sums.
fn group_sums(gradient: &Tensor, grouping: Grouping) -> Tensor {
    let groups = match grouping {
        Grouping::Tensor => 1.0,
        Grouping::Row => 8.0,
        Grouping::Group(width) => 512.0 / width as f64,
    };
    gradient.sum(Kind::Float) / groups
}

#[test]
fn weights_blend_and_map_gradients() {
    let (w, gradient) = (weights(), normal([8, 64]));
    for grid in GRIDS {
        let mut weight = GridWeight::new(w.copy(), grid, Grouping::Row, Kind::Float);
        let hard = weight.leaf().detach().copy();
        assert!(weight.gradients().is_none(), "nothing was sent yet");
        weight.refresh(0.25);
        close(&weight.leaf().detach(), &(&w * 0.75 + &hard * 0.25), 1e-6);
        (weight.leaf() * &gradient).sum(Kind::Float).backward();
        let got = weight.gradients().expect("sent");
        weight.refresh(1.0);
        (weight.leaf() * &gradient).sum(Kind::Float).backward();
        let full = weight.gradients().expect("sent");
        close(&got.master, &(&gradient * 0.75 + full.master * 0.25), 1e-6);
        close(&got.levels.scales, &(full.levels.scales * 0.25), 1e-6);
        let narrow = GridWeight::new(w.copy(), grid, Grouping::Row, Kind::BFloat16);
        assert_eq!(*narrow.leaf(), hard.to_kind(Kind::BFloat16));
    }
}

#[test]
fn more_bits_are_closer() {
    let w = weights();
    let error = |grid: Grid| {
        let error = grid.values(&w, &grid.start(&w, Grouping::Group(16))) - &w;
        (&error * &error).sum(Kind::Float).double_value(&[])
    };
    assert!(error(Grid::Lsq { bits: 4 }) < error(Grid::Lsq { bits: 3 }));
    assert!(error(Grid::Affine { bits: 4 }) < error(Grid::Affine { bits: 3 }));
    assert!(error(Grid::Affine { bits: 3 }) < error(Grid::Affine { bits: 2 }));
    assert!(error(Grid::Affine { bits: 2 }) < error(Grid::Affine { bits: 1 }));
}

#[test]
fn what_no_artifact_holds_is_not_exported() {
    for grid in GRIDS {
        let weight = GridWeight::new(weights(), grid, Grouping::Row, Kind::Float);
        match grid {
            Grid::Dlt => {
                let exported = weight.export().expect("γ is 0");
                assert_eq!(exported.dequantize(), weight.leaf().detach());
                let _ = weight.levels().offsets.as_ref().expect("γ").shallow_clone().g_add_scalar_(0.01);
                let error = weight.export().expect_err("γ is not 0").to_string();
                assert_eq!(
                    error,
                    "DLT's shift γ cannot be exported, because an artifact holds codes -1, 0, 1 and one scale a group: \
                     leave γ at 0, which makes it Estimator::LearnedScale"
                );
            }
            _ => {
                let error = weight.export().expect_err("not ternary").to_string();
                assert!(error.contains(&format!("{grid:?}")) && error.contains("cannot be exported"), "{error}");
            }
        }
    }
}
