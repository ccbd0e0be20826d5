//! The chain of channels, and what each is worth in it.
//!
//! *Place*: [`super::removal`] reads the transitions that all journeys made, and divides all value by [`removal_effects`].
//!
//! First order: where a journey goes on to depends on where it is alone. A journey begins at the start and ends with a conversion or
//! without. The removal effect of a channel is the part of conversions that are lost when every journey that would reach the channel
//! ends there without a conversion (Anderl et al. 2016, "Mapping the customer journey").
//!
//! With N the inverse of I - Q over the channels, p the probability of a conversion from each channel and P from the start, the journeys
//! that pass a channel c are N[s, c] / N[c, c] of all, so its effect is that times p[c] / P: one inversion for all channels.

/// How often journeys went from one place to another.
#[derive(Debug)]
pub struct Chain {
    channels: usize,
    /// From the start to each channel.
    starts: Vec<f64>,
    /// From each channel (row) to each (column).
    steps: Vec<f64>,
    /// From each channel to a conversion.
    conversions: Vec<f64>,
    /// All that left each channel, to a conversion, another channel or the end.
    leaving: Vec<f64>,
}

impl Chain {
    /// Without journeys.
    pub fn new(channels: usize) -> Self {
        let none = || vec![0.0; channels];
        Self { channels, starts: none(), steps: vec![0.0; channels * channels], conversions: none(), leaving: none() }
    }

    /// Journeys that begin at a channel.
    pub fn start(&mut self, to: usize, times: i64) {
        self.starts[to] += times as f64;
    }

    /// Journeys that go on from one channel to another.
    pub fn step(&mut self, from: usize, to: usize, times: i64) {
        self.steps[from * self.channels + to] += times as f64;
        self.leaving[from] += times as f64;
    }

    /// Journeys that end at a channel, with a conversion or without.
    pub fn end(&mut self, from: usize, converted: bool, times: i64) {
        if converted {
            self.conversions[from] += times as f64;
        }
        self.leaving[from] += times as f64;
    }

    /// The removal effect of each channel, between 0 and 1; all 0 where nothing was converted.
    pub fn removal_effects(&self) -> Vec<f64> {
        let n = self.channels;
        let begun: f64 = self.starts.iter().sum();
        if begun == 0.0 {
            return vec![0.0; n];
        }
        // I - Q, and its inverse beside it.
        let mut matrix = vec![0.0; n * n];
        for from in 0..n {
            for to in 0..n {
                let chance = if self.leaving[from] > 0.0 { self.steps[from * n + to] / self.leaving[from] } else { 0.0 };
                matrix[from * n + to] = f64::from(u8::from(from == to)) - chance;
            }
        }
        let inverse = inverted(matrix, n);
        let converted = |channel: usize| if self.leaving[channel] > 0.0 { self.conversions[channel] / self.leaving[channel] } else { 0.0 };
        let from_channel: Vec<f64> = (0..n).map(|from| (0..n).map(|via| inverse[from * n + via] * converted(via)).sum::<f64>()).collect();
        let all: f64 = (0..n).map(|channel| self.starts[channel] / begun * from_channel[channel]).sum();
        if all <= 0.0 {
            return vec![0.0; n];
        }
        let effect = |channel: usize| {
            let visits: f64 = (0..n).map(|from| self.starts[from] / begun * inverse[from * n + channel]).sum();
            (visits / inverse[channel * n + channel] * from_channel[channel] / all).clamp(0.0, 1.0)
        };
        (0..n).map(effect).collect()
    }
}

/// Gauss and Jordan, with the greatest pivot of a column. I - Q has an inverse, since every channel leads to an end.
fn inverted(mut matrix: Vec<f64>, n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for row in 0..n {
        inverse[row * n + row] = 1.0;
    }
    for column in 0..n {
        let magnitude = |row: usize| matrix[row * n + column].abs();
        let pivot = (column..n).fold(column, |best, row| if magnitude(row) > magnitude(best) { row } else { best });
        if pivot != column {
            for place in 0..n {
                matrix.swap(pivot * n + place, column * n + place);
                inverse.swap(pivot * n + place, column * n + place);
            }
        }
        let by = matrix[column * n + column];
        if by == 0.0 {
            continue;
        }
        for place in 0..n {
            matrix[column * n + place] /= by;
            inverse[column * n + place] /= by;
        }
        for row in (0..n).filter(|row| *row != column) {
            let times = matrix[row * n + column];
            if times != 0.0 {
                for place in 0..n {
                    matrix[row * n + place] -= times * matrix[column * n + place];
                    inverse[row * n + place] -= times * inverse[column * n + place];
                }
            }
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journeys as lists of channels, with whether they convert.
    fn chain(channels: usize, journeys: &[(&[usize], bool)]) -> Chain {
        let mut chain = Chain::new(channels);
        for (journey, converted) in journeys {
            chain.start(journey[0], 1);
            journey.windows(2).for_each(|pair| chain.step(pair[0], pair[1], 1));
            chain.end(journey[journey.len() - 1], *converted, 1);
        }
        chain
    }

    /// The probability of a conversion by following the chain step by step, journeys that reach `without` being lost.
    fn followed(chain: &Chain, without: Option<usize>) -> f64 {
        let n = chain.channels;
        let begun: f64 = chain.starts.iter().sum();
        let mut at: Vec<f64> = chain.starts.iter().map(|count| count / begun).collect();
        let mut converted = 0.0;
        for _ in 0..10_000 {
            let mut next = vec![0.0; n];
            for from in (0..n).filter(|from| Some(*from) != without && chain.leaving[*from] > 0.0) {
                converted += at[from] * chain.conversions[from] / chain.leaving[from];
                for (to, chance) in next.iter_mut().enumerate() {
                    *chance += at[from] * chain.steps[from * n + to] / chain.leaving[from];
                }
            }
            at = next;
        }
        converted
    }

    #[test]
    fn a_known_chain() {
        // Three journeys: 0 1 2 converts, 0 ends, 1 2 ends. Worked out by hand: P = 1/3 of the chain, all of it through 1 and 2.
        let chain = chain(3, &[(&[0, 1, 2], true), (&[0], false), (&[1, 2], false)]);
        let effects = chain.removal_effects();
        // From the start two thirds go to 0, half of these on to 1; a third goes to 1 at once. P = (2/3 * 1/2 + 1/3) * 1/2 = 1/3.
        // Without 0 a third reaches 1, so P = 1/6 and half is lost.
        for (effect, expected) in effects.iter().zip([0.5, 1.0, 1.0]) {
            assert!((effect - expected).abs() < 1e-12, "{effects:?}");
        }
    }

    #[test]
    fn effects_are_those_of_following_the_chain_without_the_channel() {
        let mut state = 11_u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for _ in 0..50 {
            let channels = next(5) + 1;
            let journeys: Vec<(Vec<usize>, bool)> =
                (0..next(20) + 2).map(|_| ((0..next(6) + 1).map(|_| next(channels)).collect(), next(2) == 0)).collect();
            let borrowed: Vec<(&[usize], bool)> = journeys.iter().map(|(journey, converted)| (journey.as_slice(), *converted)).collect();
            let chain = chain(channels, &borrowed);
            let all = followed(&chain, None);
            for (channel, effect) in chain.removal_effects().into_iter().enumerate() {
                let expected = if all > 0.0 { 1.0 - followed(&chain, Some(channel)) / all } else { 0.0 };
                assert!((effect - expected).abs() < 1e-9, "{journeys:?}: {channel} has {effect}, not {expected}");
            }
        }
    }

    #[test]
    fn without_conversions_nothing_is_worth_anything() {
        assert_eq!(chain(2, &[(&[0, 1], false)]).removal_effects(), [0.0, 0.0]);
        assert_eq!(Chain::new(0).removal_effects(), Vec::<f64>::new());
    }
}
