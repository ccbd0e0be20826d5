//! An entity's touches and conversions in order of time, and what each conversion gives to the channels before it.
//!
//! *Place*: `attribution` gathers rows by entity with [`Journeys`]. For the model by removal the result is not credit but the steps that
//! the entity's journeys take; `attribution::removal` makes credit of all of them.
//!
//! Arguments: time, order of arrival, whether a row converts, whether it touches, its channel, whether it belongs to nobody; then, as
//! far as [`Settings`] says, the conversion's value, the lookback and the half-life.
//!
//! *Invariants*: (1) a touch counts for a conversion when it is not later, by time and arrival, and not more than the lookback earlier:
//! a row that converts and touches is a touch of its own conversion; (2) each conversion looks back for itself, over touches that an
//! earlier one may have used; (3) rows of nobody are apart from each other.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Field, FieldRef, Fields, Int64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{HashMap, Result};

use super::credit::{Model, decayed, split};
use crate::error::{Error, SqlState};
use crate::query::functions::arithmetic::out_of_range;
use crate::query::operator::gather::{Kernel, Rows};

/// Fields of the result: the channel, or where a step begins; where a step ends; what kind of step; parts of conversions, or steps; value.
pub const CHANNEL: &str = "channel";
/// See [`CHANNEL`].
pub const TO: &str = "to";
/// See [`CHANNEL`].
pub const KIND: &str = "kind";
/// See [`CHANNEL`].
pub const CREDIT: &str = "credit";
/// See [`CHANNEL`].
pub const VALUE: &str = "value";

/// Parts that a conversion is divided into.
pub const PARTS: i64 = 1_000_000_000;
/// The scale of a value that nobody gave: each conversion is worth 1.
pub const PARTS_SCALE: i8 = 9;

/// Most channels of one entity whose conversions are divided: each conversion looks at all of them.
const ENTITY_CHANNELS_MAX: usize = 10_000;

/// Arguments before those that [`Settings`] adds.
const BEFORE_VALUE: usize = 6;

/// What an entity's journeys do, for the model by removal.
pub mod kind {
    /// Begin at the channel.
    pub const START: i64 = 0;
    /// Go from the channel to another.
    pub const STEP: i64 = 1;
    /// End at the channel with a conversion.
    pub const CONVERTED: i64 = 2;
    /// End at the channel without.
    pub const LOST: i64 = 3;
    /// Are a conversion without a touch.
    pub const UNTOUCHED: i64 = 4;
}

/// How the rows are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The model.
    pub model: Model,
    /// The scale of the values; none where each conversion is worth 1.
    pub scale: Option<i8>,
    /// Microseconds, or none where the last but one argument says it.
    pub lookback_us: Option<i64>,
    /// Microseconds, or none where the last argument says it.
    pub half_life_us: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub struct Journeys(pub Settings);

impl Journeys {
    fn value_scale(&self) -> i8 {
        self.0.scale.unwrap_or(PARTS_SCALE)
    }
}

impl Kernel for Journeys {
    fn name(&self) -> &'static str {
        "attributed"
    }

    fn fields(&self, arguments: &[FieldRef]) -> Result<Fields> {
        let channel = arguments.get(4).ok_or_else(|| Error::internal("attribution without a channel"))?;
        let like = |name: &str| Field::new(name, channel.data_type().clone(), true).with_metadata(channel.metadata().clone());
        let value = DataType::Decimal128(DECIMAL128_MAX_PRECISION, self.value_scale());
        let mut fields = vec![like(CHANNEL)];
        if self.0.model == Model::Markov {
            fields.extend([like(TO), Field::new(KIND, DataType::Int64, true)]);
        }
        fields.extend([Field::new(CREDIT, DataType::Int64, true), Field::new(VALUE, value, true)]);
        Ok(fields.into())
    }

    fn finish(&self, rows: &Rows, fields: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
        let mut walk = Walk::new(&self.0, rows)?;
        let mut lengths = Vec::with_capacity(rows.entities());
        for entity in 0..rows.entities() {
            let before = walk.out.len();
            walk.entity(rows.of(entity))?;
            lengths.push(walk.out.len() - before);
        }
        let value_type =
            fields.last().map(|field| field.data_type().clone()).ok_or_else(|| Error::internal("attribution without fields"))?;
        Ok((walk.out.columns(&rows.columns[4], self.0.model == Model::Markov, &value_type)?, lengths))
    }
}

/// The results of all entities so far. A channel is the place of a row that has it, or none.
#[derive(Default)]
struct Out {
    channels: Vec<Option<u32>>,
    to: Vec<Option<u32>>,
    kinds: Vec<i64>,
    credits: Vec<i64>,
    values: Vec<i128>,
}

impl Out {
    fn len(&self) -> usize {
        self.credits.len()
    }

    fn push(&mut self, channel: Option<u32>, to: Option<u32>, kind: i64, credit: i64, value: i128) {
        self.channels.push(channel);
        self.to.push(to);
        self.kinds.push(kind);
        self.credits.push(credit);
        self.values.push(value);
    }

    fn columns(self, channel: &ArrayRef, steps: bool, value_type: &DataType) -> Result<Vec<ArrayRef>> {
        let at = |places: Vec<Option<u32>>| -> Result<ArrayRef> { Ok(take(channel, &UInt32Array::from(places), None)?) };
        let mut columns = vec![at(self.channels)?];
        if steps {
            columns.extend([at(self.to)?, Arc::new(Int64Array::from(self.kinds)) as ArrayRef]);
        }
        columns.push(Arc::new(Int64Array::from(self.credits)));
        columns.push(Arc::new(Decimal128Array::from(self.values).with_data_type(value_type.clone())));
        Ok(columns)
    }
}

/// A touch of the entity that is walked through.
#[derive(Clone, Copy)]
struct Touch {
    time: i64,
    /// The channel's number within the entity.
    channel: usize,
}

/// What steps are counted by: kind, and the numbers of the channels.
type StepKey = (i64, Option<usize>, Option<usize>);

/// Goes through entities.
struct Walk<'a> {
    settings: &'a Settings,
    times: Int64Array,
    arrivals: Int64Array,
    rows: &'a Rows,
    /// The same number for equal channels.
    channels: Vec<u32>,
    out: Out,
    value_type: DataType,
}

impl<'a> Walk<'a> {
    fn new(settings: &'a Settings, rows: &'a Rows) -> Result<Self> {
        let numbers = |column: &ArrayRef| -> Result<Int64Array> { Ok(cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().clone()) };
        Ok(Self {
            settings,
            times: numbers(&rows.columns[0])?,
            arrivals: numbers(&rows.columns[1])?,
            rows,
            channels: numbered(&rows.columns[4])?,
            out: Out::default(),
            value_type: DataType::Decimal128(DECIMAL128_MAX_PRECISION, settings.scale.unwrap_or(PARTS_SCALE)),
        })
    }

    fn flag(&self, column: usize, row: u32) -> bool {
        let flags = self.rows.columns[column].as_boolean();
        flags.is_valid(row as usize) && flags.value(row as usize)
    }

    /// A length that is a constant, or an argument of all rows.
    fn length(&self, constant: Option<i64>, from_last: usize, row: u32) -> i64 {
        constant.unwrap_or_else(|| {
            let place = self.rows.columns.len() - 1 - from_last;
            self.rows.columns[place].as_primitive::<Int64Type>().value(row as usize)
        })
    }

    fn entity(&mut self, rows: &[u32]) -> Result<()> {
        let (of_nobody, mut own): (Vec<u32>, Vec<u32>) =
            rows.iter().filter(|row| self.times.is_valid(**row as usize)).partition(|row| self.flag(5, **row));
        own.sort_unstable_by_key(|row| (self.times.value(*row as usize), self.arrivals.value(*row as usize), *row));
        self.path(&own)?;
        of_nobody.iter().try_for_each(|row| self.path(&[*row]))
    }

    /// The rows of one entity, in order.
    fn path(&mut self, rows: &[u32]) -> Result<()> {
        let Some(any) = rows.first() else { return Ok(()) };
        let lookback_us = self.length(self.settings.lookback_us, usize::from(self.settings.half_life_us.is_none()), *any);
        let half_life_us = self.length(self.settings.half_life_us, 0, *any);
        let mut path = Path::new(self.settings.model, half_life_us);
        for row in rows {
            let time = self.times.value(*row as usize);
            if self.flag(3, *row) {
                path.touch(time, self.channels[*row as usize], *row);
                if path.channels.len() > ENTITY_CHANNELS_MAX && !matches!(self.settings.model, Model::First | Model::Last) {
                    return Err(too_many_channels().into());
                }
            }
            if self.flag(2, *row) {
                let value = match self.settings.scale {
                    Some(_) => {
                        let values = self.rows.columns[BEFORE_VALUE].as_primitive::<Decimal128Type>();
                        if values.is_valid(*row as usize) { values.value(*row as usize) } else { 0 }
                    }
                    None => i128::from(PARTS),
                };
                path.convert(time, lookback_us, value).ok_or_else(|| out_of_range(&self.value_type))?;
            }
        }
        path.give(&mut self.out);
        Ok(())
    }
}

fn too_many_channels() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "an entity of ATTRIBUTION has too many channels")
        .detail(format!("At most {ENTITY_CHANNELS_MAX} are possible."))
        .hint("Group rare channels together, or check the argument \"by\".")
}

/// The same number for equal values, NULLs among them.
fn numbered(column: &ArrayRef) -> Result<Vec<u32>> {
    let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())])?;
    let rows = converter.convert_columns(std::slice::from_ref(column))?;
    let mut known: HashMap<&[u8], u32> = HashMap::new();
    let rows: Vec<_> = rows.iter().collect();
    let mut numbers = Vec::with_capacity(rows.len());
    for row in &rows {
        let next = known.len() as u32;
        numbers.push(*known.entry(row.data()).or_insert(next));
    }
    Ok(numbers)
}

/// One entity's touches so far, and what its conversions have given.
struct Path {
    model: Model,
    half_life_us: i64,
    touches: Vec<Touch>,
    /// The first touch that is within the lookback of the newest conversion.
    from: usize,
    /// Channels of the entity: the number of each among all, and a row that has it.
    channels: Vec<(u32, u32)>,
    /// The place of each number in `channels`.
    places: HashMap<u32, usize>,
    /// How many touches of each channel are from `from` on.
    counts: Vec<u64>,
    /// Whether a conversion has looked at a touch; for steps.
    seen: Vec<bool>,
    credits: Vec<(i64, i128)>,
    untouched: (i64, i128),
    steps: HashMap<StepKey, (i64, i128)>,
}

impl Path {
    fn new(model: Model, half_life_us: i64) -> Self {
        Self {
            model,
            half_life_us,
            touches: Vec::new(),
            from: 0,
            channels: Vec::new(),
            places: HashMap::new(),
            counts: Vec::new(),
            seen: Vec::new(),
            credits: Vec::new(),
            untouched: (0, 0),
            steps: HashMap::new(),
        }
    }

    fn touch(&mut self, time: i64, number: u32, row: u32) {
        let next = self.channels.len();
        let channel = *self.places.entry(number).or_insert(next);
        if channel == next {
            self.channels.push((number, row));
            self.counts.push(0);
            self.credits.push((0, 0));
        }
        self.counts[channel] += 1;
        self.touches.push(Touch { time, channel });
        self.seen.push(false);
    }

    /// Gives a conversion's value away. None when a sum leaves its type.
    fn convert(&mut self, time: i64, lookback_us: i64, value: i128) -> Option<()> {
        let earliest = time.saturating_sub(lookback_us);
        while let Some(touch) = self.touches.get(self.from).filter(|touch| touch.time < earliest) {
            self.counts[touch.channel] -= 1;
            self.from += 1;
        }
        let path = &self.touches[self.from..];
        if path.is_empty() {
            self.untouched = (self.untouched.0 + PARTS, self.untouched.1.checked_add(value)?);
            return Some(());
        }
        if self.model == Model::Markov {
            return self.follow(value);
        }
        let whole = match self.model {
            Model::First => path.first(),
            Model::Last => path.last(),
            _ => None,
        };
        if let Some(touch) = whole {
            let credit = &mut self.credits[touch.channel];
            *credit = (credit.0 + PARTS, credit.1.checked_add(value)?);
            return Some(());
        }
        let weights = weights(self.model, path, &self.counts, |touch| decayed(time - touch.time, self.half_life_us));
        let turn = xxhash_rust::xxh3::xxh3_64(&time.to_le_bytes());
        let parts = split(i128::from(PARTS), &weights, turn).into_iter().zip(split(value, &weights, turn));
        for (credit, (part, value)) in self.credits.iter_mut().zip(parts) {
            *credit = (credit.0 + i64::try_from(part).ok()?, credit.1.checked_add(value)?);
        }
        Some(())
    }

    /// Counts the steps of a journey that converts.
    fn follow(&mut self, value: i128) -> Option<()> {
        self.seen[self.from..].fill(true);
        let path = self.touches[self.from..].to_vec();
        self.journey(&path, kind::CONVERTED, value)
    }

    fn journey(&mut self, path: &[Touch], end: i64, value: i128) -> Option<()> {
        let mut count = |key: StepKey, value: i128| {
            let steps = self.steps.entry(key).or_default();
            *steps = (steps.0 + 1, steps.1.checked_add(value)?);
            Some(())
        };
        let (Some(first), Some(last)) = (path.first(), path.last()) else { return Some(()) };
        count((kind::START, Some(first.channel), None), 0)?;
        for pair in path.windows(2) {
            count((kind::STEP, Some(pair[0].channel), Some(pair[1].channel)), 0)?;
        }
        count((end, Some(last.channel), None), value)
    }

    /// Puts out what has been given.
    fn give(mut self, out: &mut Out) {
        let row = |channels: &[(u32, u32)], channel: usize| channels.get(channel).map(|(_, row)| *row);
        if self.model == Model::Markov {
            // Touches that no conversion has looked at, each run of them, are journeys that led to nothing.
            let touches = std::mem::take(&mut self.touches);
            let mut at = 0;
            while at < touches.len() {
                let end = (at..touches.len()).find(|place| self.seen[*place] != self.seen[at]).unwrap_or(touches.len());
                if !self.seen[at] {
                    // Steps without value cannot leave a type.
                    let _ = self.journey(&touches[at..end], kind::LOST, 0);
                }
                at = end;
            }
            let mut steps: Vec<_> = std::mem::take(&mut self.steps).into_iter().collect();
            steps.sort_unstable_by_key(|(key, _)| *key);
            for ((kind, from, to), (times, value)) in steps {
                let place = |channel: Option<usize>| channel.and_then(|channel| row(&self.channels, channel));
                out.push(place(from), place(to), kind, times, value);
            }
        }
        for (channel, (credit, value)) in self.credits.iter().enumerate().filter(|(_, (credit, value))| *credit != 0 || *value != 0) {
            out.push(row(&self.channels, channel), None, 0, *credit, *value);
        }
        if self.untouched.0 > 0 {
            out.push(None, None, kind::UNTOUCHED, self.untouched.0, self.untouched.1);
        }
    }
}

/// What each channel weighs for a conversion that has `path` before it, of whose touches each channel has `counts`.
fn weights(model: Model, path: &[Touch], counts: &[u64], decayed: impl Fn(&Touch) -> u64) -> Vec<u64> {
    let (first, last) = (path[0].channel, path[path.len() - 1].channel);
    let mut weights = vec![0_u64; counts.len()];
    match model {
        Model::First => weights[first] = 1,
        Model::Last | Model::Markov => weights[last] = 1,
        Model::Linear => weights.copy_from_slice(counts),
        Model::Position => {
            let between = path.len().saturating_sub(2) as u64;
            // Of 5 * between shares the ends have two fifths each, and each touch between them one.
            let end = if between == 0 { 1 } else { 2 * between };
            if between > 0 {
                weights.copy_from_slice(counts);
                weights[first] -= 1;
                weights[last] -= 1;
            }
            weights[first] += end;
            if path.len() > 1 {
                weights[last] += end;
            }
        }
        Model::TimeDecay => path.iter().for_each(|touch| weights[touch.channel] += decayed(touch)),
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    /// Touches `(day, channel)` of channels 0 to 2, then a conversion worth `value` on day 10, looking back so many days.
    fn given(model: Model, touches: &[(i64, u32)], lookback_days: i64, value: i128) -> Vec<(i64, i128)> {
        let mut path = Path::new(model, 7 * DAY);
        for channel in 0..3 {
            // So that the places of the results are the numbers of the channels.
            path.touch(-1_000 * DAY, channel, channel);
        }
        for (day, channel) in touches {
            path.touch(day * DAY, *channel, *channel);
        }
        path.convert(10 * DAY, lookback_days * DAY, value).unwrap();
        path.credits.iter().copied().chain([path.untouched]).collect()
    }

    fn values(model: Model, touches: &[(i64, u32)]) -> Vec<i128> {
        given(model, touches, 30, 10_000).into_iter().map(|(_, value)| value).collect()
    }

    #[test]
    fn models_by_position_and_time() {
        let touches = [(1, 0), (3, 1), (10, 2)];
        assert_eq!(values(Model::First, &touches), [10_000, 0, 0, 0]);
        assert_eq!(values(Model::Last, &touches), [0, 0, 10_000, 0]);
        // Whose the last one is, the conversion's time says.
        let mut linear = values(Model::Linear, &touches);
        linear.sort_unstable();
        assert_eq!(linear, [0, 3_333, 3_333, 3_334]);
        assert_eq!(values(Model::Position, &touches), [4_000, 2_000, 4_000, 0]);
        assert_eq!(values(Model::Position, &[(1, 0), (2, 1)]), [5_000, 5_000, 0, 0]);
        assert_eq!(values(Model::Position, &[(1, 1)]), [0, 10_000, 0, 0]);
        assert_eq!(values(Model::Position, &[(1, 0), (2, 1), (3, 1), (4, 0)]), [8_000, 2_000, 0, 0]);
        // A week before, half as much as on the day.
        assert_eq!(values(Model::TimeDecay, &[(3, 1), (10, 2)]), [0, 3_333, 6_667, 0]);
        assert_eq!(values(Model::Linear, &[(1, 0), (2, 0), (3, 1)]), [6_667, 3_333, 0, 0]);
    }

    #[test]
    fn the_lookback_includes_its_end() {
        assert_eq!(given(Model::Linear, &[(1, 0), (3, 1)], 7, 100), [(0, 0), (PARTS, 100), (0, 0), (0, 0)]);
        assert_eq!(given(Model::Linear, &[(1, 0), (2, 1)], 7, 100), [(0, 0), (0, 0), (0, 0), (PARTS, 100)]);
    }

    #[test]
    fn conversions_share_touches_and_credits_add_up() {
        for model in [Model::First, Model::Last, Model::Linear, Model::Position, Model::TimeDecay] {
            let mut path = Path::new(model, DAY);
            let (mut total, mut conversions) = (0, 0);
            for step in 0..200_i64 {
                if step % 3 != 0 {
                    path.touch(step * DAY / 5, (step % 4) as u32, 0);
                }
                if step % 7 == 0 {
                    let value = i128::from(step * 37 % 101 - 30);
                    path.convert(step * DAY / 5, 2 * DAY, value).unwrap();
                    (total, conversions) = (total + value, conversions + PARTS);
                }
            }
            let given = path.credits.iter().chain([&path.untouched]);
            let (credit, value) = given.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!((credit, value), (conversions, total), "{model:?}");
        }
    }

    #[test]
    fn steps_of_journeys() {
        let mut path = Path::new(Model::Markov, DAY);
        path.touch(0, 5, 50);
        path.touch(DAY, 6, 60);
        path.convert(2 * DAY, 30 * DAY, 7).unwrap();
        path.touch(40 * DAY, 5, 51);
        path.convert(400 * DAY, DAY, 9).unwrap();
        let mut out = Out::default();
        path.give(&mut out);
        let rows: Vec<_> =
            (0..out.len()).map(|row| (out.kinds[row], out.channels[row], out.to[row], out.credits[row], out.values[row])).collect();
        assert_eq!(
            rows,
            [
                (kind::START, Some(50), None, 2, 0),
                (kind::STEP, Some(50), Some(60), 1, 0),
                (kind::CONVERTED, Some(60), None, 1, 7),
                (kind::LOST, Some(50), None, 1, 0),
                (kind::UNTOUCHED, None, None, PARTS, 9),
            ]
        );
    }
}
