//! Which buckets of keys can still be asked for.
//!
//! A row is a duplicate while it is within the span (window and lateness) of the newest event of its own partition, so what has
//! to be kept is a span for every partition, wherever its clock is. A key is a key of the whole table: what one partition has
//! left behind another may still bring, so the buckets between the slowest partition and the newest are kept as well.
//!
//! Both are bounded, and by what is in the log alone. A partition that was not heard from for long ([`silence_us`] of the
//! server's clock, up to the last row of the table) keeps nothing; for keys of other partitions the table looks
//! [`SHARED_BUCKETS_MAX`] half spans back at most; and beyond [`BUCKETS_MAX`] the partitions heard from last come first.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::clock::Micros;
use crate::store::classify::Partition;

/// Buckets of event time a span is cut into.
const BUCKETS_PER_SPAN: i64 = 2;

/// Buckets kept for keys that come again in another partition than the first time.
const SHARED_BUCKETS_MAX: i64 = 6;

/// Buckets kept at most: each is asked for every row.
const BUCKETS_MAX: usize = 32;

/// A partition is not silent before, however short the window: a shop may be closed over a long weekend, and what its clients then send
/// again is from before.
const SILENCE_MIN_US: i64 = 4 * 86_400_000_000;

/// Event time of a bucket, microseconds.
pub fn bucket_us(span_us: i64) -> i64 {
    // Rounded up, so that a span never touches more than one bucket more than it is cut into.
    (span_us / BUCKETS_PER_SPAN).saturating_add(span_us % BUCKETS_PER_SPAN).max(1)
}

/// How long after its last row a partition is taken to be silent: no client sends again what it sent so long ago.
fn silence_us(span_us: i64) -> i64 {
    span_us.saturating_mul(2).max(SILENCE_MIN_US)
}

/// The buckets to keep, by event time divided by [`bucket_us`].
pub fn wanted<'a>(partitions: impl Iterator<Item = &'a Partition> + Clone, span_us: i64) -> BTreeSet<i64> {
    let bucket_us = bucket_us(span_us);
    let Some(last_heard) = partitions.clone().map(|partition| partition.heard).max() else { return BTreeSet::new() };
    let since = last_heard.saturating_sub(silence_us(span_us));
    let mut heard: HashMap<i64, Micros> = HashMap::new();
    for partition in partitions.filter(|partition| partition.heard >= since) {
        let number = partition.newest.div_euclid(bucket_us);
        heard.entry(number).and_modify(|heard| *heard = partition.heard.max(*heard)).or_insert(partition.heard);
    }
    let (Some(slowest), Some(newest)) = (heard.keys().min().copied(), heard.keys().max().copied()) else { return BTreeSet::new() };
    let oldest = (slowest - BUCKETS_PER_SPAN).max(newest - (SHARED_BUCKETS_MAX - 1));
    let mut wanted: BTreeSet<i64> = (oldest..=newest).collect();
    let mut spans: Vec<(Micros, i64)> = heard.into_iter().map(|(number, heard)| (heard, number)).collect();
    spans.sort_unstable_by(|a, b| b.cmp(a));
    for (_, last) in spans {
        for number in ((last - BUCKETS_PER_SPAN)..=last).rev() {
            if wanted.len() < BUCKETS_MAX {
                wanted.insert(number);
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    /// Of partitions by newest event time and when they were heard from, both in hours, with a span of four.
    #[track_caller]
    fn check(partitions: &[(i64, i64)], expected: &[i64]) {
        let partitions: Vec<Partition> =
            partitions.iter().map(|(newest, heard)| Partition { newest: newest * HOUR, heard: heard * HOUR }).collect();
        assert_eq!(wanted(partitions.iter(), 4 * HOUR).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_partition_that_is_heard_from_has_its_span() {
        check(&[], &[]);
        check(&[(101, 0)], &[48, 49, 50]);
        check(&[(101, 0), (97, 0)], &[46, 47, 48, 49, 50]);
        // Far apart: of what lies between, only what is near the newest.
        check(&[(101, 0), (21, 0)], &[8, 9, 10, 45, 46, 47, 48, 49, 50]);
        // Four days of silence.
        check(&[(101, 96), (21, 0)], &[8, 9, 10, 45, 46, 47, 48, 49, 50]);
        check(&[(101, 97), (21, 0)], &[48, 49, 50]);
    }

    #[test]
    fn partitions_heard_from_last_come_first() {
        let partitions: Vec<(i64, i64)> = (0..50).map(|number| (number * 100, number)).collect();
        let spans = (41..49).flat_map(|number| number * 50 - 2..=number * 50);
        let expected: Vec<i64> = [1999, 2000].into_iter().chain(spans).chain(2445..=2450).collect();
        assert_eq!(expected.len(), BUCKETS_MAX);
        check(&partitions, &expected);
    }
}
