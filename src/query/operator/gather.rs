//! An aggregate that gathers an entity's rows and makes a list of structures from them: what operators over paths are lowered to.
//!
//! *Place*: operators implement [`Kernel`] and call [`gather`] in an aggregation by entity, whose list they unnest. The rows go through
//! DataFusion's hash aggregation: partial per partition, exchanged by entity, spilled when memory is short.
//!
//! *Invariants*: (1) the state is the rows themselves, a list of structures of the arguments, in the order in which they came: a kernel
//! orders what it needs ordered, by arguments where rows are divided among threads (where states are kept for long, rows may stand for
//! several: [`Fewer`]); (2) what is held is counted in `size`, so that the
//! memory of queries bounds it.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::mem::size_of_val;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, StructArray, UInt32Array, new_empty_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{concat, filter, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use crate::error::{Error, SqlState};

/// Name of a list's items.
const ITEM: &str = "item";

/// What is made of an entity's rows.
pub trait Kernel: Debug + Send + Sync + 'static {
    /// Name of the aggregate, for EXPLAIN.
    fn name(&self) -> &'static str;

    /// The types that arguments are coerced to.
    fn coerced(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    /// The fields of the list's structures, from those of the arguments.
    fn fields(&self, arguments: &[FieldRef]) -> Result<Fields>;

    /// The structures of all entities, with the number of each entity's.
    fn finish(&self, rows: &Rows, fields: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)>;

    /// How rows become fewer where states are kept; none where every row stays.
    fn fewer(&self) -> Option<&dyn Fewer> {
        None
    }
}

/// Rows that stand for several. Of the same rows of an entity, however they are divided, come the same in the end: a view that takes back
/// what an entity brought gives what it took.
pub trait Fewer {
    /// The types of the columns that rows have, for arguments of these types.
    fn types(&self, arguments: &[DataType]) -> Vec<DataType>;

    /// The columns of some rows each of which stands for itself.
    fn enter(&self, arguments: Vec<ArrayRef>, rows: usize) -> Result<Vec<ArrayRef>>;

    /// As few rows as stand for all, with the number of each entity's.
    fn settle(&self, rows: &Rows) -> Result<(Vec<ArrayRef>, Vec<usize>)>;

    /// Rows of arguments, of which [`Kernel::finish`] gives what it gives of all that came, with the number of each entity's.
    fn leave(&self, rows: &Rows, arguments: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)>;
}

/// Gathered rows of many entities.
#[derive(Debug)]
pub struct Rows {
    /// The arguments, a value a row.
    pub columns: Vec<ArrayRef>,
    /// Places of rows, those of an entity together.
    order: Vec<u32>,
    /// Where each entity's part of `order` begins, and the end.
    bounds: Vec<usize>,
}

impl Rows {
    /// Those of an entity one after another.
    fn of_lengths(columns: Vec<ArrayRef>, lengths: &[usize]) -> Result<Self> {
        let mut bounds = vec![0];
        bounds.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let order = (0..u32::try_from(bounds[lengths.len()]).map_err(|_| too_many())?).collect();
        Ok(Self { columns, order, bounds })
    }

    /// The number of entities.
    pub fn entities(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The places of an entity's rows, in the order in which they came.
    pub fn of(&self, entity: usize) -> &[u32] {
        &self.order[self.bounds[entity]..self.bounds[entity + 1]]
    }

    /// By entity of each row: a counting sort.
    fn new(columns: Vec<ArrayRef>, entity_of: &[u32], entities: usize) -> Result<Self> {
        let mut bounds = vec![0_usize; entities + 1];
        for entity in entity_of {
            bounds[*entity as usize + 1] += 1;
        }
        for entity in 0..entities {
            bounds[entity + 1] += bounds[entity];
        }
        let mut next = bounds.clone();
        let mut order = vec![0_u32; entity_of.len()];
        for (row, entity) in entity_of.iter().enumerate() {
            let place = &mut next[*entity as usize];
            order[*place] = u32::try_from(row).map_err(|_| too_many())?;
            *place += 1;
        }
        Ok(Self { columns, order, bounds })
    }
}

fn too_many() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many rows are gathered by entity")
        .detail("One part of an aggregation can hold 2147483647 rows.")
        .hint("Filter the input.")
}

/// The aggregate of a kernel.
pub fn gather(kernel: Arc<dyn Kernel>) -> Arc<AggregateUDF> {
    gathering(kernel, false)
}

fn gathering(kernel: Arc<dyn Kernel>, keeps: bool) -> Arc<AggregateUDF> {
    let shown = format!("{kernel:?} {keeps}");
    Arc::new(AggregateUDF::new_from_impl(Gather { kernel, keeps, shown, signature: Signature::user_defined(Volatility::Immutable) }))
}

#[derive(Debug)]
struct Gather {
    kernel: Arc<dyn Kernel>,
    /// Whether states are kept for long.
    keeps: bool,
    /// The kernel with its settings: two that show the same are the same.
    shown: String,
    signature: Signature,
}

impl PartialEq for Gather {
    fn eq(&self, other: &Self) -> bool {
        self.shown == other.shown
    }
}

impl Eq for Gather {}

impl Hash for Gather {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shown.hash(state);
    }
}

fn list_of(fields: Fields) -> DataType {
    DataType::List(Arc::new(Field::new(ITEM, DataType::Struct(fields), true)))
}

/// The structure of rows of columns of these types.
fn fields_of(types: impl IntoIterator<Item = DataType>) -> Fields {
    types.into_iter().enumerate().map(|(index, data_type)| Field::new(format!("a{index}"), data_type, true)).collect()
}

/// A function as it is used where its states are kept, if it is one of these and its kernel knows how rows become fewer.
pub fn kept(function: &AggregateUDF) -> Option<Arc<AggregateUDF>> {
    let gather = function.inner().downcast_ref::<Gather>().filter(|gather| gather.kernel.fewer().is_some())?;
    Some(gathering(Arc::clone(&gather.kernel), true))
}

impl Gather {
    /// The structure of a kept row.
    fn kept(&self, arguments: &[FieldRef]) -> Fields {
        let types: Vec<DataType> = arguments.iter().map(|field| field.data_type().clone()).collect();
        fields_of(match self.kernel.fewer().filter(|_| self.keeps) {
            Some(fewer) => fewer.types(&types),
            None => types,
        })
    }

    fn groups(&self, args: &AccumulatorArgs<'_>) -> Result<Gatherer> {
        let DataType::List(item) = args.return_field.data_type() else { return Err(Error::internal("a list of rows is no list").into()) };
        let DataType::Struct(fields) = item.data_type() else { return Err(Error::internal("a list of rows has no structures").into()) };
        Ok(Gatherer {
            kernel: Arc::clone(&self.kernel),
            keeps: self.keeps,
            arguments: fields_of(args.expr_fields.iter().map(|field| field.data_type().clone())),
            kept: self.kept(args.expr_fields),
            fields: fields.clone(),
            chunks: Vec::new(),
            entity_of: Vec::new(),
            entities: 0,
            bytes: 0,
        })
    }
}

impl AggregateUDFImpl for Gather {
    fn name(&self) -> &str {
        self.kernel.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let fields: Vec<FieldRef> = types.iter().map(|data_type| Arc::new(Field::new("", data_type.clone(), true))).collect();
        Ok(self.return_field(&fields)?.data_type().clone())
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        let types: Vec<DataType> = arguments.iter().map(|field| field.data_type().clone()).collect();
        let coerced = self.kernel.coerced(&types)?;
        let typed = |(field, data_type): (&FieldRef, DataType)| Arc::new(field.as_ref().clone().with_data_type(data_type));
        let arguments: Vec<FieldRef> = arguments.iter().zip(coerced).map(typed).collect();
        Ok(Arc::new(Field::new(self.name(), list_of(self.kernel.fields(&arguments)?), true)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.kernel.coerced(types)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[rows]", args.name), list_of(self.kept(args.input_fields)), true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(self.groups(&args)?)))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.groups(&args)?))
    }
}

/// Gathers the rows of many entities.
#[derive(Debug)]
struct Gatherer {
    kernel: Arc<dyn Kernel>,
    /// Whether states are kept for long.
    keeps: bool,
    /// The structure of the arguments.
    arguments: Fields,
    /// The structure of a kept row.
    kept: Fields,
    /// The structure of a result.
    fields: Fields,
    /// Rows as they came, columns of each.
    chunks: Vec<Vec<ArrayRef>>,
    /// The entity of each row.
    entity_of: Vec<u32>,
    entities: usize,
    bytes: usize,
}

impl Gatherer {
    fn fewer(&self) -> Option<&dyn Fewer> {
        self.kernel.fewer().filter(|_| self.keeps)
    }

    /// Arguments as rows are kept.
    fn entering(&self, arguments: Vec<ArrayRef>, rows: usize) -> Result<Vec<ArrayRef>> {
        match self.fewer() {
            Some(fewer) => fewer.enter(arguments, rows),
            None => Ok(arguments),
        }
    }

    /// As few rows as stand for all.
    fn settled(&self, rows: Rows) -> Result<Rows> {
        let Some(fewer) = self.fewer() else { return Ok(rows) };
        let (columns, lengths) = fewer.settle(&rows)?;
        Rows::of_lengths(columns, &lengths)
    }

    fn push(&mut self, columns: Vec<ArrayRef>, entities: impl Iterator<Item = usize>) -> Result<()> {
        let before = self.entity_of.len();
        for entity in entities {
            self.entity_of.push(u32::try_from(entity).map_err(|_| too_many())?);
        }
        if self.entity_of.len() == before {
            return Ok(());
        }
        if i32::try_from(self.entity_of.len()).is_err() {
            return Err(too_many().into());
        }
        // A string that is kept must not keep the page that it was read from.
        let compact = |column: ArrayRef| match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()) as ArrayRef,
            _ => column,
        };
        let columns: Vec<ArrayRef> = columns.into_iter().map(compact).collect();
        self.bytes += columns.iter().map(|column| column.get_array_memory_size()).sum::<usize>();
        self.chunks.push(columns);
        Ok(())
    }

    /// The rows of the entities that are given out, the others kept.
    fn emit(&mut self, emit: EmitTo) -> Result<Rows> {
        let width = self.kept.len();
        let mut columns = Vec::with_capacity(width);
        for (index, field) in self.kept.iter().enumerate() {
            let parts: Vec<&dyn Array> = self.chunks.iter().map(|chunk| chunk[index].as_ref()).collect();
            columns.push(if parts.is_empty() { new_empty_array(field.data_type()) } else { concat(&parts)? });
        }
        self.chunks.clear();
        self.bytes = 0;
        let entity_of = std::mem::take(&mut self.entity_of);
        let count = match emit {
            EmitTo::All => std::mem::take(&mut self.entities),
            EmitTo::First(count) => count,
        };
        if let EmitTo::First(_) = emit {
            self.entities = self.entities.saturating_sub(count);
            let (given, left): (Vec<usize>, Vec<usize>) = (0..entity_of.len()).partition(|row| (entity_of[*row] as usize) < count);
            let rows = |rows: &[usize]| rows.iter().map(|row| *row as u32).collect::<UInt32Array>();
            let picked = |rows: &UInt32Array| columns.iter().map(|column| Ok(take(column, rows, None)?)).collect::<Result<Vec<_>>>();
            let kept = picked(&rows(&left))?;
            self.push(kept, left.iter().map(|row| entity_of[*row] as usize - count))?;
            let entities: Vec<u32> = given.iter().map(|row| entity_of[*row]).collect();
            return Rows::new(picked(&rows(&given))?, &entities, count);
        }
        Rows::new(columns, &entity_of, count)
    }
}

fn listed(columns: Vec<ArrayRef>, lengths: Vec<usize>, fields: &Fields) -> Result<ArrayRef> {
    let count = lengths.iter().sum();
    if i32::try_from(count).is_err() {
        return Err(too_many().into());
    }
    let items = match fields.is_empty() {
        true => StructArray::new_empty_fields(count, None),
        false => StructArray::try_new(fields.clone(), columns, None)?,
    };
    let item = Arc::new(Field::new(ITEM, DataType::Struct(fields.clone()), true));
    Ok(Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(items), None)?))
}

impl GroupsAccumulator for Gatherer {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], chosen: Option<&BooleanArray>, count: usize) -> Result<()> {
        self.entities = self.entities.max(count);
        match chosen {
            None => self.push(self.entering(values.to_vec(), groups.len())?, groups.iter().copied()),
            Some(chosen) => {
                let columns: Vec<ArrayRef> = values.iter().map(|column| Ok(filter(column, chosen)?)).collect::<Result<_>>()?;
                let rows = columns.first().map_or(0, |column| column.len());
                let passes = |row: usize| chosen.is_valid(row) && chosen.value(row);
                self.push(self.entering(columns, rows)?, groups.iter().enumerate().filter(|(row, _)| passes(*row)).map(|(_, group)| *group))
            }
        }
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.entities = self.entities.max(count);
        let lists = values[0].as_list::<i32>();
        let offsets = lists.value_offsets();
        let (first, last) = (offsets[0] as usize, offsets[lists.len()] as usize);
        let rows = lists.values().as_struct();
        let columns = rows.columns().iter().map(|column| column.slice(first, last - first)).collect();
        let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        self.push(columns, groups.iter().zip(lengths).flat_map(|(group, length)| std::iter::repeat_n(*group, length)))
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let rows = self.emit(emit)?;
        let mut rows = self.settled(rows)?;
        if let Some(fewer) = self.fewer() {
            let (columns, lengths) = fewer.leave(&rows, &self.arguments)?;
            rows = Rows::of_lengths(columns, &lengths)?;
        }
        let (columns, lengths) = self.kernel.finish(&rows, &self.fields)?;
        listed(columns, lengths, &self.fields)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let rows = self.emit(emit)?;
        let rows = self.settled(rows)?;
        let order = UInt32Array::from(rows.order);
        let columns = rows.columns.iter().map(|column| Ok(take(column, &order, None)?)).collect::<Result<_>>()?;
        let lengths = rows.bounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok(vec![listed(columns, lengths, &self.kept)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], chosen: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let count = values[0].len();
        let (columns, lengths) = match chosen {
            None => (values.to_vec(), vec![1; count]),
            Some(chosen) => {
                let lengths = (0..count).map(|row| usize::from(chosen.is_valid(row) && chosen.value(row))).collect();
                (values.iter().map(|column| Ok(filter(column, chosen)?)).collect::<Result<_>>()?, lengths)
            }
        };
        let rows = lengths.iter().sum();
        Ok(vec![listed(self.entering(columns, rows)?, lengths, &self.kept)?])
    }

    fn size(&self) -> usize {
        self.bytes + self.entity_of.capacity() * size_of::<u32>() + size_of_val(self)
    }
}

/// The same for an aggregation without keys.
#[derive(Debug)]
struct One(Gatherer);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |column| column.len());
        self.0.update_batch(values, &vec![0; rows], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let lists = states.first().map_or(0, |column| column.len());
        self.0.merge_batch(states, &vec![0; lists], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.entities = 1;
        ScalarValue::try_from_array(&self.0.evaluate(EmitTo::All)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.entities = 1;
        self.0.state(EmitTo::All)?.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Gives each entity's numbers in order.
    #[derive(Debug)]
    struct Sorted;

    impl Kernel for Sorted {
        fn name(&self) -> &'static str {
            "sorted"
        }

        fn fields(&self, arguments: &[FieldRef]) -> Result<Fields> {
            Ok(vec![Field::new("number", arguments[0].data_type().clone(), true)].into())
        }

        fn finish(&self, rows: &Rows, _: &Fields) -> Result<(Vec<ArrayRef>, Vec<usize>)> {
            let numbers = rows.columns[0].as_primitive::<Int64Type>();
            let (mut all, mut lengths) = (Vec::new(), Vec::new());
            for entity in 0..rows.entities() {
                let mut own: Vec<i64> = rows.of(entity).iter().map(|row| numbers.value(*row as usize)).collect();
                own.sort_unstable();
                lengths.push(own.len());
                all.extend(own);
            }
            Ok((vec![Arc::new(Int64Array::from(all))], lengths))
        }
    }

    fn gatherer() -> Gatherer {
        let argument: FieldRef = Arc::new(Field::new("", DataType::Int64, true));
        Gatherer {
            kernel: Arc::new(Sorted),
            keeps: false,
            arguments: fields_of([DataType::Int64]),
            kept: fields_of([DataType::Int64]),
            fields: Sorted.fields(&[argument]).unwrap(),
            chunks: Vec::new(),
            entity_of: Vec::new(),
            entities: 0,
            bytes: 0,
        }
    }

    fn numbers(from: i64, count: i64) -> Vec<ArrayRef> {
        vec![Arc::new((from..from + count).rev().collect::<Int64Array>())]
    }

    fn shown(lists: &ArrayRef) -> Vec<Vec<i64>> {
        let lists = lists.as_list::<i32>();
        let one = |list: ArrayRef| list.as_struct().column(0).as_primitive::<Int64Type>().values().to_vec();
        (0..lists.len()).map(|row| one(lists.value(row))).collect()
    }

    #[test]
    fn the_result_does_not_depend_on_how_rows_are_divided() {
        let mut whole = gatherer();
        whole.update_batch(&numbers(0, 6), &[0, 1, 2, 0, 1, 2], None, 4).unwrap();
        whole.update_batch(&numbers(6, 2), &[1, 1], None, 4).unwrap();
        let expected = shown(&whole.evaluate(EmitTo::All).unwrap());
        assert_eq!(expected, [vec![2, 5], vec![1, 4, 6, 7], vec![0, 3], vec![]]);
        // In two parts, one as states of single rows, merged in another order of entities.
        let mut part = gatherer();
        part.update_batch(&numbers(0, 6), &[0, 1, 2, 0, 1, 2], None, 3).unwrap();
        let states = part.state(EmitTo::All).unwrap();
        let singles = gatherer().convert_to_state(&numbers(6, 2), None).unwrap();
        let mut merged = gatherer();
        merged.merge_batch(&singles, &[0, 0], 1).unwrap();
        merged.merge_batch(&states, &[1, 0, 2], 4).unwrap();
        let found = shown(&merged.evaluate(EmitTo::All).unwrap());
        assert_eq!(found, [expected[1].clone(), expected[0].clone(), expected[2].clone(), vec![]]);
    }

    #[test]
    fn the_first_entities_can_be_given_out_alone() {
        let mut gatherer = gatherer();
        gatherer.update_batch(&numbers(0, 6), &[0, 1, 2, 0, 1, 2], None, 3).unwrap();
        assert_eq!(shown(&gatherer.evaluate(EmitTo::First(1)).unwrap()), [[2, 5]]);
        assert_eq!(shown(&gatherer.state(EmitTo::First(1)).unwrap()[0]), [[4, 1]]);
        gatherer.update_batch(&numbers(9, 1), &[1], None, 2).unwrap();
        assert_eq!(shown(&gatherer.evaluate(EmitTo::All).unwrap()), [vec![0, 3], vec![9]]);
        assert!(shown(&gatherer.evaluate(EmitTo::All).unwrap()).is_empty());
    }

    #[test]
    fn rows_that_a_filter_leaves_out_are_not_gathered() {
        let chosen = BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]);
        let mut gathered = gatherer();
        gathered.update_batch(&numbers(0, 4), &[0, 0, 1, 1], Some(&chosen), 2).unwrap();
        assert_eq!(shown(&gathered.evaluate(EmitTo::All).unwrap()), [[3], [0]]);
        let states = gatherer().convert_to_state(&numbers(0, 4), Some(&chosen)).unwrap();
        assert_eq!(shown(&states[0]), [vec![3], vec![], vec![], vec![0]]);
    }
}
