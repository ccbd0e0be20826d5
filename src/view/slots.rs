//! How state rows are clustered: time group, then slot, then partition, then bucket.
//!
//! *Place*: `checkpoint` sorts by it, `read` and `prune` find rows by it.
//!
//! The slot is the low byte of xxh3-64 over the slot keys' values (256 slots): for one string key, of its bytes; further keys
//! are hashed with the hash so far as seed. It depends on nothing but the values, so that slots can move between machines.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::spec::Spec;
use super::window::{NULL_GROUP, ONE_GROUP, buckets};

/// Where a state row belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) group: i64,
    pub(super) slot: u8,
    pub(super) hash: u64,
    pub(super) bucket: i64,
}

/// The places of rows, from their key columns.
pub(super) fn places(spec: &Spec, keys: &[ArrayRef], rows: usize) -> Vec<Place> {
    let mut hashes = vec![0_u64; rows];
    for (position, key) in spec.slot_keys.iter().enumerate() {
        hash_column(&keys[*key], position == 0, &mut hashes);
    }
    let times = spec.time.as_ref().map(|time| (time, buckets(&keys[time.key])));
    hashes
        .into_iter()
        .enumerate()
        .map(|(row, hash)| {
            let (group, bucket) = match &times {
                None => (ONE_GROUP, 0),
                Some((time, buckets)) => buckets[row].map_or((NULL_GROUP, NULL_GROUP), |bucket| (time.group(bucket), bucket)),
            };
            Place { group, slot: hash as u8, hash, bucket }
        })
        .collect()
}

/// The slot of rows whose slot keys have the values of `keys` (one row each, in the order of the spec's slot keys).
pub(super) fn slot_of(keys: &[ArrayRef]) -> u8 {
    let mut hashes = [0_u64];
    for (position, key) in keys.iter().enumerate() {
        hash_column(key, position == 0, &mut hashes);
    }
    hashes[0] as u8
}

/// The hashes of values, none of them NULL, by which large sets of them are cut.
pub(super) fn value_hashes(values: &ArrayRef) -> Vec<u64> {
    if let Some(width) = values.data_type().primitive_width() {
        let data = values.to_data();
        return data.buffers()[0].as_slice()[data.offset() * width..].chunks_exact(width).take(values.len()).map(xxh3_64).collect();
    }
    let mut hashes = vec![0_u64; values.len()];
    hash_column(values, true, &mut hashes);
    hashes
}

/// Whether [`value_hashes`] tells values of a type apart.
pub(super) fn hashes_values(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8View | DataType::Utf8 | DataType::Binary | DataType::FixedSizeBinary(_))
        || kind.primitive_width().is_some()
}

/// Hash of a NULL, chosen once.
const NULL_HASH: u64 = 0x9e37_79b9_7f4a_7c15;

fn hash_column(column: &ArrayRef, first: bool, hashes: &mut [u64]) {
    let mix = |hash: &mut u64, bytes: Option<&[u8]>| {
        *hash = match (bytes, first) {
            (Some(bytes), true) => xxh3_64(bytes),
            (Some(bytes), false) => xxh3_64_with_seed(bytes, *hash),
            (None, _) => hash.rotate_left(5) ^ NULL_HASH,
        };
    };
    match column.data_type() {
        DataType::Utf8View => {
            let strings = column.as_string_view();
            hashes.iter_mut().zip(strings.iter()).for_each(|(hash, value)| mix(hash, value.map(str::as_bytes)));
        }
        DataType::Utf8 => {
            let strings = column.as_string::<i32>();
            hashes.iter_mut().zip(strings.iter()).for_each(|(hash, value)| mix(hash, value.map(str::as_bytes)));
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            hashes.iter_mut().zip(values.iter()).for_each(|(hash, value)| mix(hash, value));
        }
        DataType::FixedSizeBinary(_) => {
            let values = column.as_fixed_size_binary();
            hashes.iter_mut().zip(values.iter()).for_each(|(hash, value)| mix(hash, value));
        }
        DataType::Boolean => {
            let values = column.as_boolean();
            hashes
                .iter_mut()
                .zip(values.iter())
                .for_each(|(hash, value)| mix(hash, value.map(|value| [u8::from(value)]).as_ref().map(|b| b.as_slice())));
        }
        other => {
            // Values of fixed width; of nested types only whether they are NULL: rows then share slots, which costs nothing but balance.
            let width = other.primitive_width().unwrap_or(0);
            let data = column.to_data();
            let bytes = if width == 0 { &[] } else { &data.buffers()[0].as_slice()[data.offset() * width..] };
            for (row, hash) in hashes.iter_mut().enumerate() {
                mix(hash, column.is_valid(row).then(|| &bytes[row * width..(row + 1) * width]));
            }
        }
    }
}
