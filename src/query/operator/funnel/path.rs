//! `funnel_path(...)` per entity: how far it gets, in what times, and the values that it is grouped by.
//!
//! *Place*: [`super::Funnel`] aggregates by entity with it; DataFusion partitions the entities by hash, runs the partitions in parallel
//! and spills what does not fit the query's memory.
//!
//! Arguments, in this order: time, order of arrival (bigint, NULL for the order in which rows and states come), window (bigint, microseconds, NULL for none), whether the event is excluded,
//! a condition for each step, the values to group by, the values that have to be the same.
//!
//! Result: `{reached int, gaps bigint[], key_0, key_1, ...}`; `gaps` are the microseconds between the events of the chain.
//!
//! State of an entity, three binaries: the window (8 bytes) and its events (24 bytes each: time, order, steps), their tagged values (a length of 4 bytes and the
//! rows of `arrow::row`, as far as values are kept by event), and the first or last event's time, order and values. An event that
//! satisfies no step is not kept, unless it is excluded or the mode is strict; nor is one after a chain that is complete, where nothing can
//! break that chain. Views leave out more as time goes on: see [`super::settled`].

use std::hash::{Hash, Hasher};
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Builder, Int64Builder, LargeBinaryArray, LargeBinaryBuilder, ListBuilder, StructArray,
    UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int64Type, TimestampMicrosecondType};
use datafusion::common::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use super::chain::{Event, Mode, NEVER, Rules, Search};
use super::interned::Interned;
use super::one::One;
use super::state::{Reader, damaged};
use crate::error::Error;

/// Whose values an entity is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attribution {
    /// Its first event's.
    First,
    /// Its last event's.
    Last,
    /// Those of the event that is step 1 of its chain.
    Step1,
}

/// What is the same for all entities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The conditions of a chain.
    pub rules: Rules,
    /// Whose values are taken.
    pub attribution: Attribution,
    /// How many values an entity is grouped by.
    pub keys: usize,
    /// How many values have to be the same along a chain.
    pub sames: usize,
    /// Whether events may be excluded.
    pub excludes: bool,
}

/// The place of the time among the arguments.
pub const TIME: usize = 0;
/// The place of the window.
pub const WINDOW: usize = 2;
/// The place of the first step.
const STEPS: usize = 4;
const EVENT_BYTES: usize = 24;
/// The order of all events where they come in theirs.
const AS_IT_COMES: i64 = i64::MIN;
/// Of a state: there is no window.
const NO_WINDOW: i64 = -1;
/// The name of the struct's field with the number of steps.
pub const REACHED: &str = "reached";
/// The name of the field with the times.
pub const GAPS: &str = "gaps";

/// The name of the field of a value to group by.
pub fn key_name(index: usize) -> String {
    format!("key_{index}")
}

impl Shape {
    fn keys_at(&self) -> usize {
        STEPS + self.rules.steps
    }

    /// Whether values to group by are kept for each event.
    fn has_event_keys(&self) -> bool {
        self.keys > 0 && self.attribution == Attribution::Step1
    }

    /// Whether values to group by are kept for each entity.
    fn has_entity_keys(&self) -> bool {
        self.keys > 0 && self.attribution != Attribution::Step1
    }

    /// Whether more events leave a complete chain a chain.
    fn only_grows(&self) -> bool {
        self.rules.mode == Mode::Ordered && !self.excludes
    }

    /// The aggregate function.
    pub fn function(self) -> Arc<AggregateUDF> {
        Arc::new(AggregateUDF::new_from_impl(Path { shape: self, signature: Signature::variadic_any(Volatility::Immutable) }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    shape: Shape,
    signature: Signature,
}

impl Hash for Path {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shape.hash(state);
    }
}

impl Path {
    fn result(&self, arguments: &[FieldRef]) -> Result<Fields> {
        let keys = arguments.get(self.shape.keys_at()..self.shape.keys_at() + self.shape.keys).ok_or_else(wrong_arguments)?;
        let mut fields = vec![
            Arc::new(Field::new(REACHED, DataType::Int32, false)),
            Arc::new(Field::new_list(GAPS, Field::new_list_field(DataType::Int64, true), false)),
        ];
        fields.extend(
            keys.iter().enumerate().map(|(index, key)| Arc::new(key.as_ref().clone().with_name(key_name(index)).with_nullable(true))),
        );
        Ok(fields.into())
    }

    /// Whether a chain is one event.
    pub(super) fn is_one_step(&self) -> bool {
        self.shape.rules.steps == 1
    }

    /// All entities of a partition, none so far.
    pub(super) fn groups(&self, arguments: &[FieldRef]) -> Result<Paths> {
        Paths::new(self.shape.clone(), arguments, self.result(arguments)?)
    }
}

impl AggregateUDFImpl for Path {
    fn name(&self) -> &'static str {
        "funnel_path"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let fields: Vec<FieldRef> = types.iter().map(|each| Arc::new(Field::new("", each.clone(), true))).collect();
        self.result(&fields).map(DataType::Struct)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), DataType::Struct(self.result(arguments)?), true)))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let parts = ["events", "values", "entity"];
        Ok(parts.iter().map(|part| Arc::new(Field::new(format!("{}[{part}]", args.name), DataType::LargeBinary, true))).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(self.groups(args.expr_fields)?)))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.groups(args.expr_fields)?))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn wrong_arguments() -> Error {
    Error::internal("funnel_path() with wrong arguments")
}

/// The event that decides what an entity is grouped by.
#[derive(Clone, Copy, Debug)]
struct Deciding {
    time: i64,
    order: i64,
    number: u32,
}

const UNDECIDED: Deciding = Deciding { time: 0, order: 0, number: NEVER };

/// All entities of a partition.
#[derive(Debug)]
pub(super) struct Paths {
    shape: Shape,
    result: Fields,
    window_us: Option<i64>,
    /// No event before it comes: see [`Search::settle`].
    pub(super) horizon: Option<i64>,
    entities: usize,
    /// The events of all, with their entities.
    events: Vec<Event>,
    owners: Vec<u32>,
    /// Of each event, as far as they are kept.
    keys: Vec<u32>,
    sames: Vec<u32>,
    /// Of each entity, as far as it is kept.
    deciding: Vec<Deciding>,
    key_rows: Interned,
    same_rows: Interned,
}

impl Paths {
    fn new(shape: Shape, arguments: &[FieldRef], result: Fields) -> Result<Self> {
        let (keys, sames) =
            arguments.get(shape.keys_at()..).and_then(|rest| rest.split_at_checked(shape.keys)).ok_or_else(wrong_arguments)?;
        if sames.len() != shape.sames {
            return Err(wrong_arguments().into());
        }
        Ok(Self {
            key_rows: Interned::new(keys)?,
            same_rows: Interned::new(sames)?,
            shape,
            result,
            window_us: None,
            horizon: None,
            entities: 0,
            events: Vec::new(),
            owners: Vec::new(),
            keys: Vec::new(),
            sames: Vec::new(),
            deciding: Vec::new(),
        })
    }

    pub(super) fn grow(&mut self, entities: usize) {
        self.entities = self.entities.max(entities);
        if self.shape.has_entity_keys() {
            self.deciding.resize(self.entities, UNDECIDED);
        }
    }

    /// Adds a batch of rows; `selected` says which count.
    pub(super) fn add(&mut self, values: &[ArrayRef], owners: &[usize], selected: Option<&BooleanArray>, entities: usize) -> Result<()> {
        self.grow(entities);
        let times = values[TIME].as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(wrong_arguments)?;
        let arrivals = values[1].as_primitive_opt::<Int64Type>().ok_or_else(wrong_arguments)?;
        let windows = values[WINDOW].as_primitive_opt::<Int64Type>().ok_or_else(wrong_arguments)?;
        if self.window_us.is_none() && !windows.is_empty() && windows.is_valid(0) {
            self.window_us = Some(windows.value(0));
        }
        let excluded = bits_of(&values[3])?;
        let mut steps = vec![0_u64; times.len()];
        for (step, condition) in values[STEPS..self.shape.keys_at()].iter().enumerate() {
            for row in bits_of(condition)?.set_indices() {
                steps[row] |= 1 << step;
            }
        }
        let everything = self.shape.rules.mode == Mode::Strict;
        let mut kept: Vec<u32> = Vec::new();
        let (has_values, mut deciding) = (self.shape.has_event_keys() || self.shape.sames > 0, Vec::new());
        let no_nulls = times.null_count() == 0 && selected.is_none();
        for row in 0..times.len() {
            if !no_nulls && (times.is_null(row) || selected.is_some_and(|selected| !selected.is_valid(row) || !selected.value(row))) {
                continue;
            }
            let is_excluded = excluded.value(row);
            let arrival = if arrivals.is_valid(row) { arrivals.value(row) << 1 } else { AS_IT_COMES };
            let (time, order) = (times.value(row), arrival | i64::from(is_excluded));
            if self.shape.has_entity_keys() && self.decides(owners[row], time, order) {
                self.deciding[owners[row]] = Deciding { time, order, number: row as u32 };
                deciding.push(row as u32);
            }
            if steps[row] != 0 || is_excluded || everything {
                self.events.push(Event { time, order, steps: steps[row] });
                self.owners.push(owners[row] as u32);
                if has_values {
                    kept.push(row as u32);
                }
            }
        }
        if has_values {
            self.tag(values, kept)?;
        }
        self.decide(values, owners, deciding)
    }

    /// Keeps the values of events.
    fn tag(&mut self, values: &[ArrayRef], rows: Vec<u32>) -> Result<()> {
        let rows = UInt32Array::from(rows);
        let taken = |columns: &[ArrayRef]| columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect::<Result<Vec<_>>>();
        let keys_at = self.shape.keys_at();
        if self.shape.has_event_keys() {
            let numbers = self.key_rows.numbers(&taken(&values[keys_at..keys_at + self.shape.keys])?)?;
            self.keys.extend(numbers);
        }
        if self.shape.sames > 0 {
            let columns = taken(&values[keys_at + self.shape.keys..])?;
            let numbers = self.same_rows.numbers(&columns)?;
            let same = |(row, number)| if columns.iter().any(|column| column.is_null(row)) { NEVER } else { number };
            self.sames.extend(numbers.into_iter().enumerate().map(same));
        }
        Ok(())
    }

    /// Keeps the values of the events that decide by now, whose rows stand where their values' numbers belong.
    fn decide(&mut self, values: &[ArrayRef], owners: &[usize], mut rows: Vec<u32>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        // An entity's last one counts: the others have been overtaken in the same batch.
        rows.retain(|row| self.deciding[owners[*row as usize]].number == *row);
        let keys_at = self.shape.keys_at();
        let indices = UInt32Array::from(rows.clone());
        let keys = values[keys_at..keys_at + self.shape.keys].iter().map(|column| Ok(take(column, &indices, None)?));
        let numbers = self.key_rows.numbers(&keys.collect::<Result<Vec<_>>>()?)?;
        let mut decided: Vec<(usize, u32)> = rows.iter().zip(numbers).map(|(row, number)| (owners[*row as usize], number)).collect();
        for (owner, number) in decided.drain(..) {
            self.deciding[owner].number = number;
        }
        Ok(())
    }

    /// Whether an event decides instead of the one that has so far.
    fn decides(&self, owner: usize, time: i64, order: i64) -> bool {
        let known = self.deciding[owner];
        known.number == NEVER
            || match self.shape.attribution {
                Attribution::Last => (time, arrival(order)) >= (known.time, arrival(known.order)),
                _ => (time, arrival(order)) < (known.time, arrival(known.order)),
            }
    }
}

/// What events of one time are ordered by.
fn arrival(order: i64) -> i64 {
    if order < 0 { AS_IT_COMES } else { order }
}

/// The rows of which a condition is true.
fn bits_of(condition: &ArrayRef) -> Result<arrow::buffer::BooleanBuffer> {
    let condition = condition.as_boolean_opt().ok_or_else(wrong_arguments)?;
    Ok(match condition.nulls() {
        Some(nulls) => condition.values() & nulls.inner(),
        None => condition.values().clone(),
    })
}

/// Entities that leave, with their events in order.
struct Leaving {
    /// Where the events of each begin, and where the last one's end.
    begins: Vec<usize>,
    events: Vec<Event>,
    keys: Vec<u32>,
    sames: Vec<u32>,
    deciding: Vec<Deciding>,
}

impl Paths {
    /// Takes the first entities out; the others move down.
    fn leave(&mut self, emit_to: EmitTo) -> Leaving {
        let count = match emit_to {
            EmitTo::All => self.entities,
            EmitTo::First(count) => count.min(self.entities),
        };
        let mut begins = vec![0; count + 1];
        for owner in self.owners.iter().map(|owner| *owner as usize).filter(|owner| *owner < count) {
            begins[owner + 1] += 1;
        }
        for entity in 0..count {
            begins[entity + 1] += begins[entity];
        }
        let mut next = begins.clone();
        let mut places = vec![0_u32; begins[count]];
        for (index, owner) in self.owners.iter().enumerate().filter(|(_, owner)| (**owner as usize) < count) {
            places[next[*owner as usize]] = index as u32;
            next[*owner as usize] += 1;
        }
        for entity in 0..count {
            let own = &mut places[begins[entity]..begins[entity + 1]];
            // Stable: those that come in no other order stay in that in which they came.
            let order = |place: &u32| (self.events[*place as usize].time, arrival(self.events[*place as usize].order));
            if !own.is_sorted_by_key(order) {
                own.sort_by_key(order);
            }
        }
        let tags = |tags: &[u32]| if tags.is_empty() { Vec::new() } else { places.iter().map(|place| tags[*place as usize]).collect() };
        let leaving = Leaving {
            events: places.iter().map(|place| self.events[*place as usize]).collect(),
            keys: tags(&self.keys),
            sames: tags(&self.sames),
            deciding: if self.deciding.is_empty() { Vec::new() } else { emit_to.take_needed(&mut self.deciding) },
            begins,
        };
        self.keep_from(count);
        leaving
    }

    /// Forgets the first entities.
    fn keep_from(&mut self, count: usize) {
        self.entities -= count;
        if self.entities == 0 {
            for tags in [&mut self.owners, &mut self.keys, &mut self.sames] {
                *tags = Vec::new();
            }
            self.events = Vec::new();
            return;
        }
        let stays: Vec<bool> = self.owners.iter().map(|owner| *owner as usize >= count).collect();
        let keep = |tags: &mut Vec<u32>| {
            let mut stays = stays.iter();
            tags.retain(|_| *stays.next().unwrap_or(&true));
        };
        keep(&mut self.keys);
        keep(&mut self.sames);
        keep(&mut self.owners);
        let mut all = stays.iter();
        self.events.retain(|_| *all.next().unwrap_or(&true));
        self.owners.iter_mut().for_each(|owner| *owner -= count as u32);
    }

    /// Forgets the values that nobody has when all entities have left.
    fn forget_values(&mut self) {
        if self.entities == 0 {
            self.key_rows.clear();
            self.same_rows.clear();
        }
    }

    pub(super) fn results(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let leaving = self.leave(emit_to);
        let entities = leaving.begins.len() - 1;
        let mut search = Search::new(self.shape.rules, self.window_us);
        let mut reached = Int32Builder::with_capacity(entities);
        let mut gaps = ListBuilder::with_capacity(Int64Builder::with_capacity(entities), entities);
        let mut keys = Vec::with_capacity(if self.shape.keys > 0 { entities } else { 0 });
        for entity in 0..entities {
            let own = leaving.begins[entity]..leaving.begins[entity + 1];
            let sames = (self.shape.sames > 0).then(|| &leaving.sames[own.clone()]);
            let chain = search.chain(&leaving.events[own.clone()], sames)?;
            reached.append_value(chain.steps as i32);
            for pair in chain.times.windows(2) {
                gaps.values().append_value(pair[1] - pair[0]);
            }
            gaps.append(true);
            if self.shape.has_event_keys() {
                keys.push(if chain.steps > 0 { leaving.keys[own.start + chain.first] } else { NEVER });
            } else if self.shape.has_entity_keys() {
                keys.push(leaving.deciding[entity].number);
            }
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(reached.finish()), Arc::new(gaps.finish())];
        if self.shape.keys > 0 {
            columns.extend(self.key_rows.columns(&keys, &self.result[2..])?);
        }
        self.forget_values();
        Ok(Arc::new(StructArray::try_new(self.result.clone(), columns, None)?))
    }

    pub(super) fn states(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let mut leaving = self.leave(emit_to);
        let entities = leaving.begins.len() - 1;
        let mut events = LargeBinaryBuilder::with_capacity(entities, leaving.events.len() * EVENT_BYTES);
        let (mut values, mut deciding) = (LargeBinaryBuilder::new(), LargeBinaryBuilder::new());
        let window = self.window_us.unwrap_or(NO_WINDOW).to_le_bytes();
        let (mut bytes, mut kept) = (Vec::new(), Vec::new());
        let mut search = Search::new(self.shape.rules, self.window_us);
        for entity in 0..entities {
            let own = leaving.begins[entity]..leaving.begins[entity + 1];
            self.keep(&mut search, &mut leaving, own.clone(), &mut kept)?;
            bytes.clear();
            bytes.extend_from_slice(&window);
            for event in kept.iter().map(|place| &leaving.events[own.start + *place]) {
                bytes.extend_from_slice(&event.time.to_le_bytes());
                bytes.extend_from_slice(&event.order.to_le_bytes());
                bytes.extend_from_slice(&event.steps.to_le_bytes());
            }
            events.append_value(&bytes);
            bytes.clear();
            for place in kept.iter().map(|place| own.start + *place) {
                for (tags, rows) in [(&leaving.keys, &self.key_rows), (&leaving.sames, &self.same_rows)] {
                    if let Some(tag) = tags.get(place) {
                        let row = rows.rows.get(*tag as usize);
                        bytes.extend_from_slice(&row.map_or(NEVER, |row| row.len() as u32).to_le_bytes());
                        bytes.extend_from_slice(row.map_or(&[], |row| row));
                    }
                }
            }
            values.append_value(&bytes);
            match leaving.deciding.get(entity).filter(|event| event.number != NEVER) {
                None => deciding.append_null(),
                Some(event) => {
                    bytes.clear();
                    bytes.extend_from_slice(&event.time.to_le_bytes());
                    bytes.extend_from_slice(&event.order.to_le_bytes());
                    bytes.extend_from_slice(&self.key_rows.rows[event.number as usize]);
                    deciding.append_value(&bytes);
                }
            }
        }
        self.forget_values();
        Ok(vec![Arc::new(events.finish()), Arc::new(values.finish()), Arc::new(deciding.finish())])
    }

    /// The places of those of an entity's events that its state has.
    fn keep(&self, search: &mut Search, leaving: &mut Leaving, own: Range<usize>, kept: &mut Vec<usize>) -> Result<()> {
        kept.clear();
        let Leaving { events, sames, .. } = leaving;
        let (events, mut same) = (&mut events[own.clone()], (self.shape.sames > 0).then(|| &sames[own]));
        let count = if self.shape.only_grows() { search.needed(events, same)? } else { events.len() };
        same = same.map(|same| &same[..count]);
        match self.horizon {
            None => kept.extend(0..count),
            Some(horizon) => search.settle(&mut events[..count], same, horizon, kept),
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, states: &[ArrayRef], owners: &[usize], entities: usize) -> Result<()> {
        self.grow(entities);
        let binary = |index: usize| states.get(index).and_then(|state| state.as_binary_opt::<i64>()).ok_or_else(damaged);
        let (events, values, deciding): (&LargeBinaryArray, &LargeBinaryArray, &LargeBinaryArray) = (binary(0)?, binary(1)?, binary(2)?);
        for (row, owner) in owners.iter().enumerate() {
            let mut state = Reader(if events.is_valid(row) { events.value(row) } else { &[] });
            let mut own_values = Reader(if values.is_valid(row) { values.value(row) } else { &[] });
            if !state.0.is_empty()
                && let window @ 0.. = state.number()?
            {
                self.window_us = Some(window);
            }
            while !state.0.is_empty() {
                let (time, order, steps) = (state.number()?, state.number()?, state.number()?.cast_unsigned());
                self.events.push(Event { time, order, steps });
                self.owners.push(*owner as u32);
                if self.shape.has_event_keys() {
                    self.keys.push(own_values.tag(&mut self.key_rows)?);
                }
                if self.shape.sames > 0 {
                    self.sames.push(own_values.tag(&mut self.same_rows)?);
                }
            }
            if self.shape.has_entity_keys() && deciding.is_valid(row) {
                let mut event = Reader(deciding.value(row));
                let (time, order) = (event.number()?, event.number()?);
                if self.decides(*owner, time, order) {
                    self.deciding[*owner] = Deciding { time, order, number: self.key_rows.number(event.0)? };
                }
            }
        }
        Ok(())
    }
}

impl GroupsAccumulator for Paths {
    fn update_batch(&mut self, values: &[ArrayRef], owners: &[usize], selected: Option<&BooleanArray>, entities: usize) -> Result<()> {
        self.add(values, owners, selected, entities)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.results(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.states(emit_to)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], owners: &[usize], entities: usize) -> Result<()> {
        self.merge(states, owners, entities)
    }

    fn convert_to_state(&self, values: &[ArrayRef], selected: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let fields = |columns: &[ArrayRef]| -> Vec<FieldRef> {
            columns.iter().map(|column| Arc::new(Field::new("", column.data_type().clone(), true))).collect()
        };
        let owners: Vec<usize> = (0..values[0].len()).collect();
        let mut rows = Paths::new(self.shape.clone(), &fields(values), self.result.clone())?;
        rows.add(values, &owners, selected, owners.len())?;
        rows.states(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.events.capacity() * size_of::<Event>()
            + (self.owners.capacity() + self.keys.capacity() + self.sames.capacity()) * size_of::<u32>()
            + self.deciding.capacity() * size_of::<Deciding>()
            + self.key_rows.bytes
            + self.same_rows.bytes
    }
}
