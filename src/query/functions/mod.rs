//! Verus's own functions, and the one place where functions are registered for every role.
//!
//! *Place*: [`register`] is called by `query::engine`; the typing rules make calls of the functions below it.
//!
//! *Invariants*: (1) a function is a [`Function`] value: a name, a typing rule and a body, no more; (2) what the session
//! decides (time zone, NOW(), user) is never read here: [`session`] functions stand for it until `query::resolve`
//! puts the values in; (3) errors are [`Error`]s with PostgreSQL's SQLSTATE.

pub mod arithmetic;
pub mod branches;
pub mod bytes;
pub mod cast;
pub mod chain;
pub mod decimal;
pub mod enrich;
pub mod geo;
pub mod interval;
mod joined;
pub mod json;
pub mod last_step;
pub mod like;
pub mod make;
pub mod math;
pub mod missing;
pub mod ordered;
pub mod padding;
pub mod regex;
pub mod repeated;
pub mod session;
pub mod strings;
pub mod sum;
pub mod system;
pub mod templates;
pub mod text;
pub mod time;
pub mod to_char;
pub mod window;
pub mod zone;

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SessionState, SessionStateDefaults};
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::error::{Error, SqlState};
use crate::types::SqlType;

/// Argument types after coercion, and the result's type.
pub type Typed = (Vec<DataType>, DataType);

/// A scalar function of Verus.
#[derive(Clone)]
pub struct Function {
    /// Lower case.
    pub name: &'static str,
    /// From the types of the arguments as written.
    pub types: fn(&[DataType]) -> Result<Typed, Error>,
    /// Over coerced arguments: all arrays of one length (1 where all arguments are constants).
    pub body: fn(&[ArrayRef], &DataType) -> Result<ArrayRef, Error>,
    signature: Signature,
    shown: Shown,
}

/// The SQL type of a result, where its Arrow type alone does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    ByArrow,
    As(SqlType),
    /// That of the first argument.
    LikeFirst,
}

impl Function {
    /// An immutable function.
    pub fn new(
        name: &'static str,
        types: fn(&[DataType]) -> Result<Typed, Error>,
        body: fn(&[ArrayRef], &DataType) -> Result<ArrayRef, Error>,
    ) -> Self {
        Self { name, types, body, signature: Signature::user_defined(Volatility::Immutable), shown: Shown::ByArrow }
    }

    /// The same function, whose result is of a SQL type that shares its Arrow type with others.
    #[must_use]
    pub fn giving(mut self, sql_type: SqlType) -> Self {
        self.shown = Shown::As(sql_type);
        self
    }

    /// The same function, whose result is of its first argument's SQL type.
    #[must_use]
    pub fn like_first(mut self) -> Self {
        self.shown = Shown::LikeFirst;
        self
    }

    /// The same function, evaluated for each row and never folded.
    #[must_use]
    pub fn volatile(mut self) -> Self {
        self.signature.volatility = Volatility::Volatile;
        self
    }

    /// As DataFusion holds it.
    pub fn udf(self) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::new_from_impl(self))
    }

    /// A call of it.
    pub fn call(self, arguments: Vec<Expr>) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(self.udf(), arguments))
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        // DataFusion would bury an error from here in text of its own; `return_type` reports it.
        Ok((self.types)(types).map_or_else(|_| types.to_vec(), |(types, _)| types))
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok((self.types)(types)?.1)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let result = (self.types)(&types)?.1;
        let sql_type = match (&self.shown, args.arg_fields.first()) {
            (Shown::As(sql_type), _) => Some(sql_type.clone()),
            (Shown::LikeFirst, Some(first)) => Some(SqlType::of_field(first)),
            _ => None,
        };
        Ok(Arc::new(match sql_type {
            Some(sql_type) if sql_type.arrow() == result => sql_type.field(self.name, true),
            _ => Field::new(self.name, result, true),
        }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_))) && !args.args.is_empty();
        let arrays: Vec<ArrayRef> = if args.args.is_empty() {
            Vec::new()
        } else if constant {
            ColumnarValue::values_to_arrays(&args.args)?
        } else {
            args.args.into_iter().map(|value| value.into_array(args.number_rows)).collect::<Result<_>>()?
        };
        let result = (self.body)(&arrays, args.return_field.data_type())?;
        if constant && result.len() == 1 {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

/// All functions of DataFusion and of Verus, for every role (server, worker): later names replace earlier ones.
pub fn register(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut scalar = SessionStateDefaults::default_scalar_functions();
    // They give types that SQL has no name for.
    scalar.retain(|function| !function.name().starts_with("arrow_"));
    // Its answer is a list, where PostgreSQL's is text.
    scalar.retain(|function| function.name() != "array_dims");
    for functions in [
        session::all(),
        time::all(),
        to_char::all(),
        window::all(),
        zone::all(),
        system::all(),
        json::all(),
        arithmetic::all(),
        branches::all(),
        bytes::all(),
        cast::all(),
        chain::all(),
        enrich::all(),
        geo::all(),
        interval::all(),
        like::all(),
        make::all(),
        math::all(),
        ordered::all(),
        padding::all(),
        regex::all(),
        strings::all(),
        templates::all(),
        super::sets::all(),
        vec![super::typing::assign::function()],
    ] {
        scalar.extend(functions);
    }
    let sign = scalar.iter().find(|function| function.name() == "signum").map(|function| function.as_ref().clone().with_aliases(["sign"]));
    scalar.extend(sign.map(Arc::new));
    let mut aggregates = SessionStateDefaults::default_aggregate_functions();
    for (name, alias) in [
        ("var", "variance"),
        ("first_value", "first"),
        ("last_value", "last"),
        ("bool_and", "every"),
        ("approx_percentile_cont", "approx_percentile"),
    ] {
        let aliased =
            aggregates.iter().find(|function| function.name() == name).map(|function| function.as_ref().clone().with_aliases([alias]));
        aggregates.extend(aliased.map(Arc::new));
    }
    aggregates.extend(ordered::names());
    aggregates.push(interval::untyped_average());
    aggregates.push(last_step::percentile_cont());
    aggregates.push(joined::string_agg());
    scalar.push(Arc::new(AsyncScalarUDF::new(Arc::new(system::Sleep::default())).into_scalar_udf()));
    builder
        .with_scalar_functions(scalar)
        .with_higher_order_functions(SessionStateDefaults::default_higher_order_functions())
        .with_aggregate_functions(aggregates)
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .with_expr_planners(Vec::new())
}

/// Whether a name is that of a function of single rows alone.
pub fn is_of_rows(name: &str) -> bool {
    let known = &*REGISTERED;
    known.scalar_functions().contains_key(name) && !known.window_functions().contains_key(name) && !is_aggregate(name)
}

/// Whether a name is an aggregate's.
pub fn is_aggregate(name: &str) -> bool {
    REGISTERED.aggregate_functions().contains_key(name)
}

/// What is known by name where a statement is still text.
static REGISTERED: LazyLock<SessionState> = LazyLock::new(|| register(SessionStateBuilder::new()).build());

/// 42883 with the argument types, as PostgreSQL words it.
pub fn undefined(name: &str, types: &[DataType]) -> Error {
    let types: Vec<_> = types.iter().map(type_name).collect();
    Error::new(SqlState::UNDEFINED_FUNCTION, format!("function {name}({}) does not exist", types.join(", ")))
        .hint("No function matches the given name and argument types. You might need to add explicit type casts.")
}

/// PostgreSQL's name of an Arrow type, without precision.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "unknown".to_owned(),
        other => match SqlType::of_arrow(other) {
            SqlType::Numeric(_) => "numeric".to_owned(),
            sql_type => sql_type.to_string(),
        },
    }
}

/// Whether values are character strings.
pub fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}
