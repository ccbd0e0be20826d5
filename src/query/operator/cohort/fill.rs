//! The numbers of a cohort's periods, for cells in which nobody was active.
//!
//! *Place*: `cohort::lower`, for `fill := true`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type};

use crate::error::{Error, SqlState};
use crate::query::functions::{Function, undefined};

/// Most periods of a cohort that are filled. A triangle of them is fifty million cells.
const PERIODS_MAX: i32 = 10_000;
/// Most cells of one batch of cohorts, all of which are in memory together.
const CELLS_MAX: usize = 10_000_000;

/// `cohort_periods(from, to)`: the whole numbers from the first to before the second, as a list.
pub fn periods() -> Function {
    Function::new(
        "cohort_periods",
        |types| match types {
            [DataType::Int32, DataType::Int32] => Ok((types.to_vec(), DataType::List(Arc::new(Field::new("item", DataType::Int32, true))))),
            _ => Err(undefined("cohort_periods", types)),
        },
        |args, result| {
            let DataType::List(item) = result else { return Err(Error::internal("periods are a list")) };
            let (from, to) = (args[0].as_primitive::<Int32Type>(), args[1].as_primitive::<Int32Type>());
            let (mut numbers, mut lengths) = (Vec::new(), Vec::with_capacity(from.len()));
            for (from, to) in from.iter().zip(to.iter()) {
                let before = numbers.len();
                if let (Some(from), Some(to)) = (from, to) {
                    if to.saturating_sub(from) > PERIODS_MAX || numbers.len() > CELLS_MAX {
                        return Err(too_many());
                    }
                    numbers.extend(from..to);
                }
                lengths.push(numbers.len() - before);
            }
            let list = ListArray::try_new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), Arc::new(Int32Array::from(numbers)), None);
            list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| Error::internal(error.to_string()))
        },
    )
}

fn too_many() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a cohort has too many periods")
        .detail(format!("At most {PERIODS_MAX} without activity can follow each other."))
        .hint("Truncate activity_date to a coarser unit, or leave out fill and retention := 'on_or_after'.")
}
