//! `pg_notify(channel, payload)`: NOTIFY for each row.
//!
//! *Place*: [`super::SystemCatalogs`] gives it to the engine, with the session that it is called in.
//!
//! *Invariants*: it is volatile, so that it is called once a row and never while a statement is planned; what it says is part of the
//! session's transaction.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::StringViewArray;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::World;

/// Its name.
pub const NAME: &str = "pg_notify";

/// The function, in the session of `world`.
pub fn function(world: Arc<World>) -> Arc<ScalarUDF> {
    let signature = Signature::exact(vec![DataType::Utf8View, DataType::Utf8View], Volatility::Volatile);
    Arc::new(ScalarUDF::new_from_impl(NotifyFunction { world, signature }))
}

/// Whether a function is this one, which holds a session.
pub fn is_one(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<NotifyFunction>().is_some()
}

#[derive(Debug)]
struct NotifyFunction {
    world: Arc<World>,
    signature: Signature,
}

impl ScalarUDFImpl for NotifyFunction {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [channel, payload] = [&args.args[0], &args.args[1]].map(|value| value.to_array(args.number_rows));
        let (channel, payload) = (channel?, payload?);
        let text = |values, row| {
            Ok::<_, datafusion::error::DataFusionError>(match ScalarValue::try_from_array(values, row)? {
                ScalarValue::Utf8View(text) => text,
                _ => None,
            })
        };
        for row in 0..args.number_rows {
            // As in PostgreSQL: no channel is an error, no payload is an empty one.
            let (channel, payload) = (text(&channel, row)?.unwrap_or_default(), text(&payload, row)?.unwrap_or_default());
            self.world.activity.notify(self.world.context.backend, &channel, &payload)?;
        }
        Ok(ColumnarValue::Array(Arc::new(StringViewArray::from_iter_values(vec![""; args.number_rows]))))
    }
}

impl PartialEq for NotifyFunction {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.world, &other.world)
    }
}

impl Eq for NotifyFunction {}

impl Hash for NotifyFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}
