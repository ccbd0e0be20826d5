//! Local regression over equally spaced points (loess), the smoother of STL: lines, or means.
//!
//! *Place*: [`super::stl`] alone. The same numbers as `est` and `ess` of the authors' Fortran with jumps of 1.
//!
//! A fitted value is a fixed combination of its neighbours, the same for every point whose window does not touch an end: there a series
//! is convolved with one symmetric kernel; the rows for the ends are computed once for all series of a length. Both are loops that the
//! compiler turns into vector instructions; this is what makes exact STL fast. (The authors' robust variant has weights of its own for
//! every point and series. It is not here: it gives residuals so long tails that four to twelve points in a hundred of pure noise lie
//! beyond three sigmas; [`super::decompose`] keeps anomalies out of the season by other means.)

/// Entries of kernel rows that are kept; beyond, they are computed when they are used (8 MiB).
const ROWS_KEPT_MAX: usize = 1 << 20;
/// Points that one step of a convolution computes side by side.
const LANES: usize = 8;

/// Weights of the neighbours of one point.
#[derive(Clone, Debug)]
struct Window {
    /// Index of the first neighbour.
    left: usize,
    /// Tricube weights of the neighbours, not yet normalized.
    tricube: Vec<f64>,
}

/// A smoother for series of one length.
#[derive(Clone, Debug)]
pub struct Loess {
    points: usize,
    /// Neighbours of a point: the span, or all.
    width: usize,
    /// Neighbours on each side of a point that is far from the ends.
    half: usize,
    span: usize,
    /// Weight of the neighbours at distance 0, 1, ... far from the ends, normalized.
    centre: Vec<f64>,
    /// Rows of the points near the beginning, `width` entries each; empty when there would be too many.
    edges: Vec<f64>,
}

impl Loess {
    /// A smoother with windows of `span` points, an odd number.
    pub fn new(points: usize, span: usize) -> Self {
        let width = span.min(points);
        let half = span / 2;
        let mut loess = Self { points, width, half, span, centre: Vec::new(), edges: Vec::new() };
        if span < points {
            let tricube: Vec<f64> = (0..=half).map(|distance| tricube(distance as f64, half as f64)).collect();
            let total = tricube[0] + 2.0 * tricube[1..].iter().sum::<f64>();
            loess.centre = tricube.iter().map(|weight| weight / total).collect();
        }
        let rows = loess.edge_rows();
        if rows.saturating_mul(width) <= ROWS_KEPT_MAX {
            let mut row = Vec::with_capacity(width);
            let mut edges = Vec::with_capacity(rows * width);
            for at in 0..rows {
                loess.kernel(at, &mut row);
                edges.extend_from_slice(&row);
            }
            loess.edges = edges;
        }
        loess
    }

    /// Points at the beginning (and as many at the end) that have rows of their own.
    fn edge_rows(&self) -> usize {
        if self.span < self.points { self.half } else { self.points.div_ceil(2) }
    }

    /// Smooths as many values as it was made for.
    pub fn smooth(&self, values: &[f64], smoothed: &mut [f64]) {
        let reversed: Vec<f64> = values.iter().rev().copied().collect();
        let mut row = Vec::new();
        let rows = self.edge_rows();
        for at in 0..rows {
            let kernel = match self.edges.get(at * self.width..(at + 1) * self.width) {
                Some(kernel) => kernel,
                None => {
                    self.kernel(at, &mut row);
                    &row
                }
            };
            smoothed[self.points - 1 - at] = dot(kernel, &reversed[..self.width]);
            smoothed[at] = dot(kernel, &values[..self.width]);
        }
        if self.span < self.points {
            self.convolve(values, &mut smoothed[rows..self.points - rows]);
        }
    }

    /// Values of the points whose windows touch no end.
    // On its own, so that what surrounds it does not decide whether it is vectorized.
    #[inline(never)]
    fn convolve(&self, values: &[f64], smoothed: &mut [f64]) {
        // The farthest neighbours have no weight.
        let (first, weights) = match self.centre.get(..self.half) {
            Some([first, weights @ ..]) => (*first, weights),
            _ => return,
        };
        let (blocks, rest) = smoothed.as_chunks_mut::<LANES>();
        let mut start = self.half;
        for block in blocks {
            let mut sums = lanes(values, start).map(|value| first * value);
            for (before, weight) in weights.iter().enumerate() {
                let (left, right) = (lanes(values, start - before - 1), lanes(values, start + before + 1));
                for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
                    *sum += weight * (left + right);
                }
            }
            *block = sums;
            start += LANES;
        }
        for (lane, slot) in rest.iter_mut().enumerate() {
            let at = start + lane;
            let pairs = weights.iter().enumerate().map(|(before, weight)| weight * (values[at - before - 1] + values[at + before + 1]));
            *slot = first * values[at] + pairs.sum::<f64>();
        }
    }

    fn window(&self, at: f64, left: usize) -> Window {
        window(at, left, self.width, self.span, self.points)
    }

    /// The row of a point near the beginning.
    fn kernel(&self, at: usize, row: &mut Vec<f64>) {
        row.clear();
        row.extend(coefficients(at as f64, &self.window(at as f64, 0), self.points, true));
    }
}

/// A smoother of the cycle-subseries: many short series side by side, fitted one step beyond each end as well.
#[derive(Clone, Debug)]
pub struct Cycles {
    points: usize,
    /// For the points -1, 0, ..., `points`: the first neighbour, and what each contributes.
    rows: Vec<(usize, Vec<f64>)>,
}

impl Cycles {
    /// A smoother for series of `points` values with windows of `span` points, an odd number, by local lines or local means.
    pub fn new(points: usize, span: usize, lines: bool) -> Self {
        let width = span.min(points);
        let rows = (0..points + 2).map(|row| {
            let at = row as f64 - 1.0;
            let left = row.saturating_sub(1 + span / 2).min(points - width);
            match points {
                // One value is its own fit everywhere.
                0 | 1 => (0, vec![1.0; points]),
                _ => (left, coefficients(at, &window(at, left, width, span, points), points, lines)),
            }
        });
        Self { points, rows: rows.collect() }
    }

    /// What smoothing makes of noise of variance 1: the variance of what it leaves, on average over the points, and that of its last value.
    pub fn noise(&self) -> (f64, f64) {
        let squares = |row: &[f64]| row.iter().map(|weight| weight * weight).sum::<f64>();
        let inner = self.rows.iter().enumerate().skip(1).take(self.points);
        let left: f64 = inner.map(|(row, (first, weights))| 1.0 - 2.0 * weights[row - 1 - first] + squares(weights)).sum();
        let last = self.rows.get(self.points).map_or(0.0, |(_, weights)| squares(weights));
        (left / self.points.max(1) as f64, last)
    }

    /// Smooths the series `values[i], values[i + stride], ...` for each i below `count` into `smoothed`, in the same layout, whose
    /// first row is the step before the beginning.
    pub fn smooth(&self, values: &[f64], stride: usize, count: usize, smoothed: &mut [f64]) {
        for (row, (first, weights)) in self.rows.iter().enumerate() {
            let target = &mut smoothed[row * stride..row * stride + count];
            target.fill(0.0);
            for (offset, weight) in weights.iter().enumerate() {
                let source = (first + offset) * stride;
                for (slot, value) in target.iter_mut().zip(&values[source..source + count]) {
                    *slot += weight * value;
                }
            }
        }
    }
}

/// The tricube weight at a distance.
fn tricube(distance: f64, reach: f64) -> f64 {
    if distance <= 0.001 * reach {
        return 1.0;
    }
    let ratio = distance / reach;
    let rest = 1.0 - ratio * ratio * ratio;
    if distance <= 0.999 * reach { rest * rest * rest } else { 0.0 }
}

/// The window of the point `at`, which may lie one step outside, among `width` neighbours from `left` on.
fn window(at: f64, left: usize, width: usize, span: usize, points: usize) -> Window {
    let right = (left + width - 1) as f64;
    let reach = (at - left as f64).max(right - at) + (span.saturating_sub(points) / 2) as f64;
    Window { left, tricube: (0..width).map(|offset| tricube(((left + offset) as f64 - at).abs(), reach)).collect() }
}

/// What each neighbour contributes to the fitted value when no robustness weights are given.
fn coefficients(at: f64, window: &Window, points: usize, lines: bool) -> Vec<f64> {
    let total: f64 = window.tricube.iter().sum();
    let distance = |offset: usize| (window.left + offset) as f64 - at;
    let mut weights: Vec<f64> = window.tricube.iter().map(|weight| weight / total).collect();
    let mean: f64 = weights.iter().enumerate().map(|(offset, weight)| weight * distance(offset)).sum();
    let variance: f64 = weights.iter().enumerate().map(|(offset, weight)| weight * (distance(offset) - mean).powi(2)).sum();
    if lines && variance.sqrt() > 0.001 * (points as f64 - 1.0) {
        for (offset, weight) in weights.iter_mut().enumerate() {
            *weight *= 1.0 - mean / variance * (distance(offset) - mean);
        }
    }
    weights
}

/// So many values from one on; zeros where there are fewer.
fn lanes(values: &[f64], from: usize) -> &[f64; LANES] {
    values.get(from..).and_then(<[f64]>::first_chunk).unwrap_or(&[0.0; LANES])
}

#[inline(never)]
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f64 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f64>() + rest
}
