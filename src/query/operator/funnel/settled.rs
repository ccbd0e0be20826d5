//! States of `funnel_path()` without the events that cannot decide any more.
//!
//! *Place*: views apply it when they merge all of an entity's states; [`super::chain::Search::settle`] says which events stay.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::FieldRef;
use datafusion::common::Result;
use datafusion::logical_expr::{AggregateUDF, EmitTo};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use super::path::{Path, TIME, WINDOW};
use crate::catalog::bind::Settle;
use crate::clock::Micros;

/// The function with the types of its arguments.
#[derive(Debug)]
struct Settled {
    path: Path,
    types: Vec<FieldRef>,
}

/// How the states of a function become smaller, if it is `funnel_path()`. Without a window every event counts for ever.
pub fn settle(function: &AggregateUDF, arguments: &[Arc<dyn PhysicalExpr>], types: &[FieldRef]) -> Option<Arc<dyn Settle>> {
    let path = function.inner().downcast_ref::<Path>()?;
    let window = arguments.get(WINDOW)?.downcast_ref::<Literal>();
    let is_bounded = path.is_one_step() || window.is_none_or(|window| !window.value().is_null());
    is_bounded.then(|| Arc::new(Settled { path: path.clone(), types: types.to_vec() }) as Arc<dyn Settle>)
}

impl Settle for Settled {
    fn time(&self) -> usize {
        TIME
    }

    fn settle(&self, states: &[ArrayRef], horizon: Micros) -> Result<Vec<ArrayRef>> {
        let entities = states.first().map_or(0, |events| events.len());
        let mut paths = self.path.groups(&self.types)?;
        paths.horizon = Some(horizon);
        paths.merge(states, &(0..entities).collect::<Vec<_>>(), entities)?;
        paths.states(EmitTo::All)
    }
}
