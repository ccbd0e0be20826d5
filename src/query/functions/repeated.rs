//! Keys that are no longer unique because a list beside them was unnested.
//!
//! *Place*: whoever unnests (sets beside tables, HOP, operators) calls [`rows_of_lists`] on the result.
//!
//! DataFusion keeps what it knows of an aggregation's keys through an unnesting: that they determine the whole row. They no longer do, and the
//! optimizer would drop the rest of an ORDER BY or GROUP BY that begins with them.

use datafusion::common::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};

use super::{Function, undefined};

/// The plan of an unnesting, with nothing known of what determines its rows. Columns keep their names and their order.
pub fn rows_of_lists(plan: LogicalPlan) -> Result<LogicalPlan> {
    let keys: Vec<usize> = plan.schema().functional_dependencies().iter().flat_map(|known| known.source_indices.clone()).collect();
    if keys.is_empty() {
        return Ok(plan);
    }
    let columns = plan.schema().columns().into_iter().enumerate().map(|(index, column)| {
        let (relation, name) = (column.relation.clone(), column.name.clone());
        let column = Expr::Column(column);
        if keys.contains(&index) { repeated().call(vec![column]).alias_qualified(relation, name) } else { column }
    });
    let columns: Vec<Expr> = columns.collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// Its argument, of which the optimizer knows nothing.
fn repeated() -> Function {
    Function::new(
        "repeated",
        |types| match types {
            [only] => Ok((types.to_vec(), only.clone())),
            _ => Err(undefined("repeated", types)),
        },
        |args, _| Ok(args[0].clone()),
    )
    .like_first()
}
