//! What would have been in the place of a series' anomalies.
//!
//! *Place*: [`super::decompose`], between one decomposition and the next.
//!
//! An anomaly bends trend and season towards itself: it looks smaller than it is, and its neighbours a period away look wrong. So the
//! anomalies are replaced by what was expected in their places, and the series is taken apart again. The residuals of the other points are
//! not weighed, so that their spread stays what it is in noise.
//!
//! What was expected is still bent by what stood there before; replaced again and again, it ends at what the series says without the
//! point. At the end of a series a fit follows its last points by nine tenths, which takes dozens of rounds. A decomposition is a linear
//! map, however: from the last few rounds it can be told where they lead (Anderson, *Iterative Procedures for Nonlinear Integral
//! Equations*, 1965).
//!
//! *Invariant*: points become anomalies only while the replaced ones stand still, and the large ones first, so that the shadows of an
//! anomaly are not replaced with it.

use super::{Decomposition, judge};

/// Rounds that are remembered.
const ROUNDS_MAX: usize = 5;
/// It stands still when nothing that was put in place of an anomaly moves by more than this part of the threshold.
const STILL: f64 = 0.02;
/// At the ends, where a fit follows its points closely and what it leaves is little, a point is put to the test from this part of the
/// threshold on, and of the largest anomaly.
const SUSPECT: f64 = 0.4;
const SUSPECT_SHADOW: f64 = 0.3;
/// What an anomaly makes of its neighbours is smaller than this part of it: a half of it where there are three cycles.
const SHADOW: f64 = 0.6;
/// Added to the diagonal of a system of equations, as a part of its greatest entry, so that equal rounds do no harm.
const RIDGE: f64 = 1e-10;

/// A series with what would have been in the place of its anomalies.
#[derive(Debug)]
pub struct Replaced {
    /// What is to be taken apart next.
    pub values: Vec<f64>,
    left_out: Vec<bool>,
    /// Points that were left out and then were none.
    acquitted: Vec<bool>,
    /// Points at each end that are tested earlier.
    margin: usize,
    /// Of the left-out points, what stood there and how the fit moved it, in the last rounds.
    rounds: Vec<(Vec<f64>, Vec<f64>)>,
}

impl Replaced {
    /// Nothing replaced yet. `margin` is the longest period.
    pub fn new(values: &[f64], margin: usize) -> Self {
        let none = vec![false; values.len()];
        Self { values: values.to_vec(), left_out: none.clone(), acquitted: none, margin, rounds: Vec::new() }
    }

    /// Moves on by what a fit expects; false when it stands still. The residuals of `parts` are those of the series as it is, and
    /// larger than `limit` is an anomaly.
    pub fn next(&mut self, parts: &Decomposition, limit: f64) -> bool {
        let expected = |index: usize| parts.trend[index] + parts.seasonal[index];
        let places: Vec<usize> = (0..self.values.len()).filter(|index| self.left_out[*index]).collect();
        let here: Vec<f64> = places.iter().map(|index| self.values[*index]).collect();
        let moves: Vec<f64> = places.iter().map(|index| expected(*index) - self.values[*index]).collect();
        if moves.iter().any(|step| step.abs() > STILL * limit) {
            for (index, value) in places.iter().zip(accelerated(&self.rounds, &here, &moves)) {
                self.values[*index] = value;
            }
            if self.rounds.len() == ROUNDS_MAX {
                self.rounds.remove(0);
            }
            self.rounds.push((here, moves));
            return true;
        }
        let severities: Vec<f64> = parts.residual.iter().map(|residual| judge::severity(*residual, limit)).collect();
        let outside = severities.iter().zip(&self.left_out).filter(|(_, out)| !**out);
        let largest = outside.fold(0.0_f64, |most, (size, _)| most.max(*size));
        let mut changed = false;
        for (index, size) in severities.iter().enumerate() {
            let out = self.left_out[index];
            let is_end = index.min(severities.len() - 1 - index) < self.margin;
            let (shadow, least) = if is_end && !self.acquitted[index] { (SUSPECT_SHADOW, SUSPECT) } else { (SHADOW, 1.0) };
            let is_anomaly = *size > if out { 1.0 } else { (largest * shadow).max(least) };
            self.acquitted[index] |= out && !is_anomaly;
            if is_anomaly != out {
                self.values[index] = if is_anomaly { expected(index) } else { expected(index) + parts.residual[index] };
                self.left_out[index] = is_anomaly;
                changed = true;
            }
        }
        self.rounds.clear();
        changed
    }
}

/// The next point of an iteration that is at `here` and moves by `moves`, with what the rounds before say of how moves change.
fn accelerated(rounds: &[(Vec<f64>, Vec<f64>)], here: &[f64], moves: &[f64]) -> Vec<f64> {
    let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
    let less = |left: &[f64], right: &[f64]| -> Vec<f64> { left.iter().zip(right).map(|(left, right)| left - right).collect() };
    let differences: Vec<(Vec<f64>, Vec<f64>)> = rounds.iter().map(|(at, step)| (less(here, at), less(moves, step))).collect();
    let mut system: Vec<Vec<f64>> = differences
        .iter()
        .map(|(_, left)| differences.iter().map(|(_, right)| dot(left, right)).chain([dot(left, moves)]).collect())
        .collect();
    let greatest = (0..system.len()).fold(0.0_f64, |greatest, row| greatest.max(system[row][row]));
    for (row, equation) in system.iter_mut().enumerate() {
        equation[row] += RIDGE * greatest;
    }
    let mut next: Vec<f64> = here.iter().zip(moves).map(|(at, step)| at + step).collect();
    for (factor, (at, step)) in solved(system).into_iter().zip(&differences) {
        for (index, next) in next.iter_mut().enumerate() {
            *next -= factor * (at[index] + step[index]);
        }
    }
    next
}

/// Solves a system of equations, whose right sides are in the last column; zero where it has no solution.
fn solved(mut system: Vec<Vec<f64>>) -> Vec<f64> {
    let size = system.len();
    for column in 0..size {
        let pivot = (column..size).max_by(|left, right| system[*left][column].abs().total_cmp(&system[*right][column].abs()));
        let Some(pivot) = pivot.filter(|pivot| system[*pivot][column] != 0.0) else { return vec![0.0; size] };
        system.swap(column, pivot);
        let equation = system[column].clone();
        for row in (0..size).filter(|row| *row != column) {
            let factor = system[row][column] / equation[column];
            for (entry, known) in system[row].iter_mut().zip(&equation) {
                *entry -= factor * known;
            }
        }
    }
    (0..size).map(|row| system[row][size] / system[row][row]).collect()
}
