//! `pg_cancel_backend(pid)` and `pg_terminate_backend(pid)`: whether there was such a session, whose statement or which itself ends now.
//!
//! *Place*: [`super::SystemCatalogs`] gives them to the engine.
//!
//! *Invariant*: they are volatile, so that each is called once a row and never while a statement is planned.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::World;

/// What is done to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Its statement is cancelled.
    Cancel,
    /// It ends.
    Terminate,
}

impl Signal {
    /// The signal that a function of this name sends.
    pub fn named(name: &str) -> Option<Signal> {
        [Signal::Cancel, Signal::Terminate].into_iter().find(|signal| signal.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Signal::Cancel => "pg_cancel_backend",
            Signal::Terminate => "pg_terminate_backend",
        }
    }
}

/// The function.
pub fn function(signal: Signal, world: Arc<World>) -> Arc<ScalarUDF> {
    let signature = Signature::exact(vec![DataType::Int64], Volatility::Volatile);
    Arc::new(ScalarUDF::new_from_impl(SignalFunction { signal, world, signature }))
}

/// Whether a function is one of these, which hold the server's activity.
pub fn is_one(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<SignalFunction>().is_some()
}

#[derive(Debug)]
struct SignalFunction {
    signal: Signal,
    world: Arc<World>,
    signature: Signature,
}

impl ScalarUDFImpl for SignalFunction {
    fn name(&self) -> &str {
        self.signal.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let backends = args.args[0].to_array(args.number_rows)?;
        // A number that no session can have is none's.
        let signal = |backend: i64| i32::try_from(backend).is_ok_and(|backend| self.world.activity.signal(backend, self.signal));
        let sent = backends.as_primitive::<Int64Type>().iter().map(|backend| backend.map(signal));
        Ok(ColumnarValue::Array(Arc::new(sent.collect::<BooleanArray>())))
    }
}

impl PartialEq for SignalFunction {
    fn eq(&self, other: &Self) -> bool {
        self.signal == other.signal && Arc::ptr_eq(&self.world, &other.world)
    }
}

impl Eq for SignalFunction {}

impl Hash for SignalFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signal.hash(state);
    }
}
