//! How a conversion's value is divided among the channels that were touched before it.
//!
//! *Place*: [`super::journeys`] for the models by position and time, [`super::markov`] for the one by removal. Numbers only.
//!
//! *Invariants*: (1) [`split`] gives away exactly the total, in whole units; (2) the same input gives the same parts on every run.

use std::cmp::Reverse;

/// How credit is given. The default comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// All to the last touch.
    Last,
    /// All to the first.
    First,
    /// The same to each.
    Linear,
    /// Two fifths to the first, two fifths to the last, the rest to those between; halves where there are two.
    Position,
    /// Half as much for each half-life that a touch is older.
    TimeDecay,
    /// By how many conversions there would be without the channel.
    Markov,
}

/// The names of the models, in their order.
pub const MODELS: [&str; 6] = ["last", "first", "linear", "position", "time_decay", "markov"];

impl Model {
    /// By its place in [`MODELS`].
    pub fn at(place: usize) -> Model {
        [Model::Last, Model::First, Model::Linear, Model::Position, Model::TimeDecay, Model::Markov]
            .get(place)
            .copied()
            .unwrap_or(Model::Last)
    }
}

/// The weight of a touch right at the conversion, by [`Model::TimeDecay`]: so many steps from the least.
const DECAY_UNIT: f64 = (1_u64 << 40) as f64;

/// The weight of a touch `age_us` before its conversion. At least one, so that no path is without weight.
pub fn decayed(age_us: i64, half_life_us: i64) -> u64 {
    let half_lives = age_us as f64 / half_life_us as f64;
    ((DECAY_UNIT * (-half_lives).exp2()) as u64).max(1)
}

/// Divides a total by weights, in whole units; what is left over goes to the greatest remainders, of equal ones to the first from a
/// place on that `turn` says: where many totals are divided alike, none is always the first. Nothing is given away where no weight is.
pub fn split(total: i128, weights: &[u64], turn: u64) -> Vec<i128> {
    let whole: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if whole == 0 {
        return vec![0; weights.len()];
    }
    // total * weight could leave 128 bits; with quotient and remainder nothing does.
    let (quotient, rest) = (total.unsigned_abs() / whole, total.unsigned_abs() % whole);
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut given = 0_u128;
    let turned = |place: usize| (place as u64 + (weights.len() as u64 - turn % weights.len() as u64)) % weights.len() as u64;
    for (place, weight) in weights.iter().enumerate() {
        let weight = u128::from(*weight);
        let part = quotient * weight + rest * weight / whole;
        given += part;
        parts.push(part);
        remainders.push((rest * weight % whole, place));
    }
    remainders.sort_by_key(|(remainder, place)| (Reverse(*remainder), turned(*place)));
    let left = usize::try_from(total.unsigned_abs() - given).unwrap_or(usize::MAX);
    for (_, place) in remainders.iter().take(left) {
        parts[*place] += 1;
    }
    let signed = |part: u128| i128::try_from(part).unwrap_or(i128::MAX) * total.signum();
    parts.into_iter().map(signed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_exact() {
        assert_eq!(split(10_000, &[1, 1, 1], 0), [3_334, 3_333, 3_333]);
        assert_eq!(split(-10_000, &[1, 1, 1], 0), [-3_334, -3_333, -3_333]);
        assert_eq!(split(10_000, &[1, 1, 1], 4), [3_333, 3_334, 3_333]);
        assert_eq!(split(10_001, &[1, 1, 1], 2), [3_334, 3_333, 3_334]);
        assert_eq!(split(1, &[2, 1, 2], 0), [1, 0, 0]);
        assert_eq!(split(100, &[40, 20, 40], 1), [40, 20, 40]);
        assert_eq!(split(0, &[3, 4], 1), [0, 0]);
        assert_eq!(split(7, &[], 1), Vec::<i128>::new());
        assert_eq!(split(7, &[0, 5], 0), [0, 7]);
    }

    #[test]
    fn any_split_gives_all_and_each_part_is_within_a_unit() {
        let mut state = 7_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for _ in 0..2_000 {
            let weights: Vec<u64> = (0..next(8) + 1).map(|_| next(1 << 30) + 1).collect();
            let total = i128::from(next(1 << 31)) * i128::from(next(1 << 31)) - (1 << 60);
            let parts = split(total, &weights, next(9));
            assert_eq!(parts.iter().sum::<i128>(), total);
            let whole: f64 = weights.iter().map(|weight| *weight as f64).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = total as f64 * *weight as f64 / whole;
                assert!((*part as f64 - exact).abs() <= 1.0 + exact.abs() * 1e-12, "{total} {weights:?} {parts:?}");
            }
        }
        let most = 10_i128.pow(38) - 1;
        assert_eq!(split(most, &[u64::MAX, 1, u64::MAX], 0).iter().sum::<i128>(), most);
    }

    #[test]
    fn weights_halve() {
        assert_eq!(decayed(0, 1_000), 1 << 40);
        assert_eq!(decayed(1_000, 1_000), 1 << 39);
        assert_eq!(decayed(3_000, 1_000), 1 << 37);
        assert_eq!(decayed(i64::MAX, 1), 1);
    }
}
