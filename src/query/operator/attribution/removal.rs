//! Credit by removal: the steps of all journeys as one chain, the value of all conversions divided by what each channel is worth in it.
//!
//! *Place*: `attribution` aggregates the steps that [`super::journeys`] counted, and gathers that small table without keys.
//!
//! Arguments: the fields of [`super::journeys`], with steps.
//!
//! *Invariants*: (1) channels are in the order of their values, so that every run calculates the same; (2) conversions without a
//! touch are no part of the chain: they and their value stay without a channel.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Fields, Int64Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::Result;

use super::credit::split;
use super::journeys::{CHANNEL, CREDIT, PARTS, VALUE, kind};
use super::markov::Chain;
use crate::error::{Error, SqlState};
use crate::query::functions::arithmetic::out_of_range;
use crate::query::operator::gather::{Kernel, Rows};

/// Most channels of a chain: its matrix is inverted.
const CHANNELS_MAX: usize = 1_000;
/// Steps that a removal effect is measured in.
const EFFECT_UNIT: f64 = (1_u64 << 50) as f64;

/// See the module.
#[derive(Debug)]
pub struct Removal;

impl Kernel for Removal {
    fn name(&self) -> &'static str {
        "attributed_by_removal"
    }

    fn fields(&self, arguments: &[FieldRef]) -> Result<Fields> {
        let [channel, _, _, credit, value] = arguments else { return Err(Error::internal("a chain has five columns").into()) };
        let like = |name: &str, field: &FieldRef| Field::new(name, field.data_type().clone(), true).with_metadata(field.metadata().clone());
        Ok(vec![like(CHANNEL, channel), like(CREDIT, credit), like(VALUE, value)].into())
    }

    fn finish(&self, rows: &Rows, fields: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let value_type = fields.last().map_or(DataType::Null, |field| field.data_type().clone());
        let (mut channels, mut credits, mut values, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for entity in 0..rows.entities() {
            let given = credit(rows, rows.of(entity), &value_type)?;
            lengths.push(given.len());
            for (channel, credit, value) in given {
                channels.push(channel);
                credits.push(credit);
                values.push(value);
            }
        }
        let columns: Vec<ArrayRef> = vec![
            take(&rows.columns[0], &UInt32Array::from(channels), None)?,
            Arc::new(Int64Array::from(credits)),
            Arc::new(Decimal128Array::from(values).with_data_type(value_type)),
        ];
        Ok((columns, lengths))
    }
}

/// A row that has the channel, parts of conversions, value.
type Given = (Option<u32>, i64, i128);

fn credit(rows: &Rows, steps: &[u32], value_type: &DataType) -> Result<Vec<Given>> {
    let kinds = rows.columns[2].as_primitive::<Int64Type>();
    let counts = rows.columns[3].as_primitive::<Int64Type>();
    let values = rows.columns[4].as_primitive::<Decimal128Type>();
    let converter = RowConverter::new(vec![SortField::new(rows.columns[0].data_type().clone())])?;
    let keys = |column: usize| converter.convert_columns(std::slice::from_ref(&rows.columns[column]));
    let (from, to) = (keys(0)?, keys(1)?);
    let of_channel = |row: u32| kinds.value(row as usize) != kind::UNTOUCHED;
    // Every channel of a journey is the beginning of a step, or of its end.
    let mut known: BTreeMap<OwnedRow, (usize, u32)> = BTreeMap::new();
    for row in steps.iter().copied().filter(|row| of_channel(*row)) {
        let found = known.entry(from.row(row as usize).owned()).or_insert((0, row));
        found.1 = found.1.min(row);
    }
    if known.len() > CHANNELS_MAX {
        return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("ATTRIBUTION by markov has {} channels", known.len()))
            .detail(format!("At most {CHANNELS_MAX} are possible."))
            .hint("Group rare channels together, or use another model.")
            .into());
    }
    for (number, found) in known.values_mut().enumerate() {
        found.0 = number;
    }
    let mut chain = Chain::new(known.len());
    let (mut converted, mut value, mut untouched) = (0_i64, 0_i128, (0_i64, 0_i128));
    let more = |sum: i128, row: u32| {
        let one = if values.is_valid(row as usize) { values.value(row as usize) } else { 0 };
        sum.checked_add(one).ok_or_else(|| out_of_range(value_type))
    };
    for row in steps.iter().copied() {
        let count = counts.value(row as usize);
        let number = |row: arrow::row::Row<'_>| {
            known.get(&row.owned()).map(|found| found.0).ok_or_else(|| Error::internal("a step leads to no channel"))
        };
        match kinds.value(row as usize) {
            kind::UNTOUCHED => untouched = (untouched.0 + count, more(untouched.1, row)?),
            kind::START => chain.start(number(from.row(row as usize))?, count),
            kind::STEP => chain.step(number(from.row(row as usize))?, number(to.row(row as usize))?, count),
            other => {
                chain.end(number(from.row(row as usize))?, other == kind::CONVERTED, count);
                if other == kind::CONVERTED {
                    (converted, value) = (converted + count, more(value, row)?);
                }
            }
        }
    }
    let weights: Vec<u64> = chain.removal_effects().into_iter().map(|effect| (effect * EFFECT_UNIT) as u64).collect();
    let parts = split(i128::from(converted) * i128::from(PARTS), &weights, 0);
    let shares = split(value, &weights, 0);
    let mut given = Vec::with_capacity(known.len() + 1);
    for (number, row) in known.values() {
        let credit = i64::try_from(parts[*number]).map_err(|_| out_of_range(&DataType::Int64))?;
        if credit != 0 || shares[*number] != 0 {
            given.push((Some(*row), credit, shares[*number]));
        }
    }
    if untouched.0 > 0 {
        given.push((None, untouched.0, untouched.1));
    }
    Ok(given)
}
