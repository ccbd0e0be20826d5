//! `funnel_summary` of paths that come and go: what a maintained funnel keeps of a group.
//!
//! *Place*: views keep one for each group, by DataFusion's interface for sliding windows.
//!
//! The times of a step are kept in two halves, the lesser and the greater, of which neither has more than one more than the other: so the
//! median is at hand after each change, which costs the logarithm of their number.

use std::collections::BTreeMap;

use arrow::array::ArrayRef;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;

use super::summary::{Path, Summarized, paths, summarized};
use crate::error::Error;

/// A multiset that knows how many it has.
#[derive(Debug, Default)]
struct Half {
    times: BTreeMap<i64, u32>,
    count: usize,
}

impl Half {
    fn insert(&mut self, time: i64) {
        *self.times.entry(time).or_default() += 1;
        self.count += 1;
    }

    fn remove(&mut self, time: i64) -> bool {
        let Some(count) = self.times.get_mut(&time) else { return false };
        *count -= 1;
        if *count == 0 {
            self.times.remove(&time);
        }
        self.count -= 1;
        true
    }

    fn first(&self) -> Option<i64> {
        self.times.first_key_value().map(|(time, _)| *time)
    }

    fn last(&self) -> Option<i64> {
        self.times.last_key_value().map(|(time, _)| *time)
    }
}

/// The times of one step.
#[derive(Debug, Default)]
struct Times {
    /// As many as `upper` or one more.
    lower: Half,
    upper: Half,
}

impl Times {
    fn insert(&mut self, time: i64) {
        match self.lower.last() {
            Some(last) if time > last => self.upper.insert(time),
            _ => self.lower.insert(time),
        }
        self.balance();
    }

    fn remove(&mut self, time: i64) -> Result<()> {
        if !self.lower.remove(time) && !self.upper.remove(time) {
            return Err(Error::internal("a path leaves a funnel that it was not in").into());
        }
        self.balance();
        Ok(())
    }

    fn balance(&mut self) {
        while self.lower.count > self.upper.count + 1 {
            let Some(last) = self.lower.last() else { return };
            self.lower.remove(last);
            self.upper.insert(last);
        }
        while self.upper.count > self.lower.count {
            let Some(first) = self.upper.first() else { return };
            self.upper.remove(first);
            self.lower.insert(first);
        }
    }

    fn count(&self) -> usize {
        self.lower.count + self.upper.count
    }

    /// The two in the middle, or the one.
    fn middle(&self) -> Option<(i64, i64)> {
        let below = self.lower.last()?;
        let above = if self.lower.count > self.upper.count { below } else { self.upper.first()? };
        Some((below, above))
    }
}

/// One group.
#[derive(Debug)]
pub struct Sliding {
    names: std::sync::Arc<[String]>,
    entered: i64,
    times: Vec<Times>,
}

impl Sliding {
    /// Nobody yet, of a funnel with steps of these names.
    pub fn new(names: &std::sync::Arc<[String]>) -> Sliding {
        Sliding { names: std::sync::Arc::clone(names), entered: 0, times: (1..names.len()).map(|_| Times::default()).collect() }
    }
}

impl Accumulator for Sliding {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for Path { gaps, .. } in paths(values)? {
            self.entered += 1;
            self.times.iter_mut().zip(gaps).for_each(|(times, gap)| times.insert(*gap));
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for Path { gaps, .. } in paths(values)? {
            self.entered -= 1;
            self.times.iter_mut().zip(gaps).try_for_each(|(times, gap)| times.remove(*gap))?;
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let steps = self.times.iter().map(|times| (times.count() as i64, times.middle())).collect();
        ScalarValue::try_from_array(&summarized(&self.names, [Summarized { entered: self.entered, steps }].into_iter())?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Err(Error::internal("the state of a sliding funnel is asked for").into())
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        Err(Error::internal("a sliding funnel is merged").into())
    }

    fn size(&self) -> usize {
        // An entry of a map with its share of the nodes.
        const ENTRY: usize = 32;
        self.times.iter().map(|times| (times.lower.times.len() + times.upper.times.len()) * ENTRY).sum::<usize>() + size_of_val(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Times;

    proptest! {
        #[test]
        fn the_middle_is_the_middle(steps in prop::collection::vec((any::<bool>(), -5_i64..5), 0..60)) {
            let (mut times, mut all) = (Times::default(), Vec::new());
            for (comes, time) in steps {
                match all.iter().position(|known| *known == time) {
                    Some(place) if !comes => {
                        all.remove(place);
                        times.remove(time).unwrap();
                    }
                    _ => {
                        all.push(time);
                        times.insert(time);
                    }
                }
                all.sort_unstable();
                let middle = (!all.is_empty()).then(|| (all[(all.len() - 1) / 2], all[all.len() / 2]));
                prop_assert_eq!((times.count(), times.middle()), (all.len(), middle));
            }
        }
    }
}
