//! DataFusion's errors as PostgreSQL's: SQLSTATE, wording, hint.
//!
//! *Place*: every error that leaves `query` comes through [`from_datafusion`].
//!
//! *Invariant*: nothing of DataFusion's own framing ("Error during planning:") reaches a user; XX000 is for broken
//! invariants alone.

use arrow::error::ArrowError;
use datafusion::common::{Column, DataFusionError, SchemaError};

use crate::error::{Error, SqlState};
use crate::query::functions::arithmetic::division_by_zero;

const EXPLICIT_CASTS: &str = "No function matches the given name and argument types. You might need to add explicit type casts.";

/// The client's view of an error of planning or execution.
pub fn from_datafusion(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(inner) => match inner.downcast::<DataFusionError>() {
                Ok(inner) => from_datafusion(*inner),
                Err(other) => foreign(&other.to_string()),
            },
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_datafusion(*inner),
        DataFusionError::Shared(inner) => shared(&inner),
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(first) => from_datafusion(first),
            None => Error::internal("an empty collection of errors"),
        },
        DataFusionError::ArrowError(inner, _) => from_arrow(*inner),
        DataFusionError::SchemaError(inner, _) => from_schema(&inner),
        DataFusionError::Plan(text) => from_text(&text, SqlState::SYNTAX_ERROR),
        DataFusionError::Execution(text) => from_text(&text, SqlState::DATA_EXCEPTION),
        DataFusionError::NotImplemented(text) => match known(&text) {
            Some(error) => error,
            None => Error::unsupported(first_line(&text)),
        },
        DataFusionError::SQL(inner, _) => Error::new(SqlState::SYNTAX_ERROR, first_line(&inner.to_string())),
        DataFusionError::ResourcesExhausted(text) => Error::new(SqlState::OUT_OF_MEMORY, "out of memory")
            .detail(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
            .hint("The query needs more memory or spill space than the server allows. Read fewer rows or columns, or add filters."),
        DataFusionError::ExecutionJoin(inner) if inner.is_cancelled() => canceled(),
        DataFusionError::ExecutionJoin(inner) => Error::internal(format!("a task of the query failed: {inner}")),
        DataFusionError::Configuration(text) => Error::new(SqlState::INVALID_PARAMETER_VALUE, first_line(&text)),
        DataFusionError::Internal(text) => match known(&text) {
            Some(error) => error,
            None => Error::internal(first_line(&text)),
        },
        other => match own(&other).or_else(|| known(&other.to_string())) {
            Some(error) => error,
            None => Error::internal(first_line(&other.to_string())),
        },
    }
}

/// An error of Verus among the causes, such as damage that was found below the Parquet reader.
fn own(error: &DataFusionError) -> Option<Error> {
    let causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    causes.into_iter().find_map(|cause| cause.downcast_ref::<Error>()).cloned()
}

/// `canceling statement due to user request`.
pub fn canceled() -> Error {
    Error::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

/// An error that several receivers hold: its copy.
fn shared(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(own) => own.clone(),
            None => foreign(&inner.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => shared(inner),
        DataFusionError::Shared(inner) => shared(inner),
        DataFusionError::ArrowError(inner, _) => arrow_text(inner),
        DataFusionError::SchemaError(inner, _) => from_schema(inner),
        DataFusionError::Plan(text) => from_text(text, SqlState::SYNTAX_ERROR),
        DataFusionError::Execution(text) => from_text(text, SqlState::DATA_EXCEPTION),
        DataFusionError::ResourcesExhausted(text) => from_datafusion(DataFusionError::ResourcesExhausted(text.clone())),
        DataFusionError::NotImplemented(text) => Error::unsupported(first_line(text)),
        other => known(&other.to_string()).unwrap_or_else(|| Error::internal(first_line(&other.to_string()))),
    }
}

/// An error of Arrow's kernels.
pub fn from_arrow(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(inner) => match inner.downcast::<DataFusionError>() {
                Ok(inner) => from_datafusion(*inner),
                Err(other) => foreign(&other.to_string()),
            },
        },
        other => arrow_text(&other),
    }
}

fn arrow_text(error: &ArrowError) -> Error {
    match error {
        ArrowError::DivideByZero => division_by_zero(),
        ArrowError::ArithmeticOverflow(_) => out_of_range("value"),
        ArrowError::CastError(text)
        | ArrowError::ParseError(text)
        | ArrowError::ComputeError(text)
        | ArrowError::InvalidArgumentError(text)
        | ArrowError::SchemaError(text)
        | ArrowError::NotYetImplemented(text) => from_text(text, SqlState::DATA_EXCEPTION),
        ArrowError::MemoryError(_) | ArrowError::OffsetOverflowError(_) => {
            Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a value or batch is larger than the server can hold")
        }
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<Error>() {
            Some(own) => own.clone(),
            None => foreign(&inner.to_string()),
        },
        other => known(&other.to_string()).unwrap_or_else(|| Error::internal(first_line(&other.to_string()))),
    }
}

fn foreign(text: &str) -> Error {
    known(text).unwrap_or_else(|| Error::internal(first_line(text)))
}

fn out_of_range(what: &str) -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{what} out of range"))
}

fn from_schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => undefined_column(field, valid_fields),
        SchemaError::AmbiguousReference { field } => {
            Error::new(SqlState::AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name))
        }
        SchemaError::DuplicateUnqualifiedField { name } => {
            Error::new(SqlState::AMBIGUOUS_COLUMN, format!("column reference \"{name}\" is ambiguous"))
        }
        SchemaError::DuplicateQualifiedField { qualifier, .. } => {
            Error::new(SqlState("42712"), format!("table name \"{}\" specified more than once", qualifier.table()))
                .hint("Give one of them an alias.")
        }
    }
}

/// 42703, or 42P01 where the qualifier is no table of the FROM clause; with the nearest name as a hint.
fn undefined_column(field: &Column, valid: &[Column]) -> Error {
    let shown = |column: &Column| match &column.relation {
        Some(relation) => format!("{}.{}", relation.table(), super::rewrite::shown(&column.name)),
        None => super::rewrite::shown(&column.name).to_owned(),
    };
    if let Some(relation) = &field.relation
        && !valid.iter().any(|column| column.relation.as_ref().is_some_and(|known| known.table() == relation.table()))
        && !valid.is_empty()
    {
        return Error::new(SqlState::UNDEFINED_TABLE, format!("missing FROM-clause entry for table \"{}\"", relation.table()));
    }
    // Columns of one name have something behind it that tells them apart.
    let of_name = |column: &&Column| column.name != field.name && super::rewrite::shown(&column.name) == field.name;
    if !field.name.is_empty() && valid.iter().filter(of_name).count() > 1 {
        return Error::new(SqlState::AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name));
    }
    let message = match &field.relation {
        Some(relation) => format!("column {}.{} does not exist", relation.table(), field.name),
        None => format!("column \"{}\" does not exist", field.name),
    };
    let error = Error::new(SqlState::UNDEFINED_COLUMN, message);
    let nearest = valid
        .iter()
        .map(|column| (strsim::damerau_levenshtein(&column.name.to_lowercase(), &field.name.to_lowercase()), column))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, column)) if distance * 2 <= field.name.len().max(2) => {
            error.hint(format!("Perhaps you meant to reference the column \"{}\".", shown(column)))
        }
        _ => error,
    }
}

fn from_text(text: &str, fallback: SqlState) -> Error {
    known(text).unwrap_or_else(|| Error::new(fallback, first_line(text)))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    Some(&rest[..rest.find(end)?])
}

/// Errors that come as text, recognised by what DataFusion and Arrow write.
fn known(text: &str) -> Option<Error> {
    Error::written_in(text).or_else(|| cast(text)).or_else(|| function(text)).or_else(|| query(text)).or_else(|| disk(text))
}

fn disk(text: &str) -> Option<Error> {
    if let Some(limit) = between(text, "exceeded the allowable limit of ", ". Please") {
        return Some(
            Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "temporary files of queries exceed their limit")
                .detail(format!("All queries together can have {limit} (limits.query.spill_bytes_max)."))
                .hint("Read fewer rows or columns, or add filters."),
        );
    }
    text.contains("No space left on device").then(|| Error::new(SqlState::DISK_FULL, "the disk is full"))
}

fn cast(text: &str) -> Option<Error> {
    if let Some(value) = between(text, "Cannot cast string '", "' to value of ") {
        let target = between(text, "' to value of ", " type").unwrap_or_default();
        return Some(invalid_text(&type_of(target), value));
    }
    if let Some(value) = between(text, "Cannot cast value '", "' to value of Boolean") {
        return Some(invalid_text("boolean", value));
    }
    if let Some(value) = between(text, "Error parsing timestamp from '", "'") {
        return Some(invalid_text("timestamp", value));
    }
    if text.contains("Can't cast value ") {
        let target = text.rsplit("to type ").next().map(type_of).unwrap_or_default();
        return Some(out_of_range(&target));
    }
    let numeric = [
        ("square root of a negative", "2201F", "cannot take square root of a negative number"),
        ("zero raised to a negative power", "2201F", "zero raised to a negative power is undefined"),
        ("nable to parse date from", "22008", "date field value out of range"),
        ("negative count not allowed", "22011", "negative substring length not allowed"),
        ("exceeds the minimum supported scale", "22003", "numeric field overflow"),
        ("field position must not be zero", "22023", "field position must not be zero"),
    ];
    if let Some((_, state, message)) = numeric.iter().find(|(part, ..)| text.contains(part)) {
        return Some(Error::new(SqlState(state), *message));
    }
    if let Some(value) = between(text, "ercentile value must be between 0.0 and 1.0 inclusive, ", " is invalid") {
        return Some(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("percentile value {value} is not between 0 and 1")));
    }
    if text.contains("imestamp out of range") {
        return Some(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range"));
    }
    if text.contains("annot cast Date32 value") {
        return Some(Error::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range for timestamp"));
    }
    let integers = ["Int16", "Int32", "Int64"].into_iter();
    if let Some(target) = integers.clone().find(|target| text.contains(&format!("{target}Array overflow on abs"))) {
        return Some(out_of_range(&type_of(target)));
    }
    if let Some(target) = integers.into_iter().find(|target| text.contains(&format!("out of range {target}"))) {
        return Some(out_of_range(&type_of(target)));
    }
    if text.contains("Overflow happened on") || text.contains("verflowing on") || text.contains("causes overflow") {
        return Some(out_of_range("value"));
    }
    if text.contains("is too large to store in a Decimal") || text.contains("Value overflows for output scale") {
        return Some(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow"));
    }
    if text.contains("DivideByZero") || text.contains("Divide by zero") || text.contains("divide by zero") {
        return Some(division_by_zero());
    }
    if text.contains("Invalid regular expression")
        || text.contains("regex parse error")
        || text.contains("Regular expression did not compile")
    {
        return Some(Error::new(SqlState("2201B"), "invalid regular expression"));
    }
    if text.contains("Unsupported CAST from ") || (text.contains("asting from ") && text.contains("not supported")) {
        let from = between(text, "from ", " to ").map(type_of)?;
        let target = text.split(" to ").nth(1).map(|rest| type_of(rest.split_whitespace().next().unwrap_or_default()))?;
        return Some(Error::new(SqlState("42846"), format!("cannot cast type {from} to {target}")));
    }
    None
}

fn invalid_text(type_name: &str, value: &str) -> Error {
    let state = match type_name {
        "date" | "timestamp" | "timestamp with time zone" | "timestamp without time zone" | "time without time zone" | "interval" => {
            SqlState::INVALID_DATETIME_FORMAT
        }
        _ => SqlState::INVALID_TEXT_REPRESENTATION,
    };
    Error::new(state, format!("invalid input syntax for type {type_name}: \"{value}\""))
}

/// PostgreSQL's name of a type that Arrow wrote.
fn type_of(arrow: &str) -> String {
    let arrow = arrow.trim().trim_end_matches(['.', ',', '\'', '"']);
    match arrow.split('(').next().unwrap_or_default() {
        "Boolean" => "boolean",
        "Int8" | "Int16" | "UInt8" => "smallint",
        "Int32" | "UInt16" => "integer",
        "Int64" | "UInt32" | "UInt64" => "bigint",
        "Float16" | "Float32" => "real",
        "Float64" => "double precision",
        "Decimal32" | "Decimal64" | "Decimal128" | "Decimal256" => "numeric",
        "Utf8" | "Utf8View" | "LargeUtf8" | "String" => "text",
        "Date32" | "Date64" => "date",
        "Timestamp" if arrow.contains("None") || !arrow.contains(',') => "timestamp without time zone",
        "Timestamp" => "timestamp with time zone",
        "Time32" | "Time64" => "time without time zone",
        "Interval" | "Duration" => "interval",
        "FixedSizeBinary" => "uuid",
        "Binary" | "BinaryView" | "LargeBinary" => "bytea",
        "Null" => "unknown",
        _ => return arrow.to_lowercase(),
    }
    .to_owned()
}

fn types_of(list: &str) -> String {
    // Commas inside parentheses belong to a type.
    let mut depth = 0_u32;
    let mut types = vec![String::new()];
    for character in list.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                types.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = types.last_mut() {
            last.push(character);
        }
    }
    types.iter().map(|name| type_of(name)).collect::<Vec<_>>().join(", ")
}

fn function(text: &str) -> Option<Error> {
    let undefined = |call: String| Error::new(SqlState::UNDEFINED_FUNCTION, format!("function {call} does not exist")).hint(EXPLICIT_CASTS);
    if let Some(name) = between(text, "Invalid function '", "'") {
        let error = Error::new(SqlState::UNDEFINED_FUNCTION, format!("function {name} does not exist"));
        return Some(match between(text, "Did you mean '", "'") {
            Some(other) if strsim::damerau_levenshtein(name, other) <= 2 => error.hint(format!("Perhaps you meant {other}().")),
            _ => error.hint(EXPLICIT_CASTS),
        });
    }
    if let Some(call) = between(text, "No function matches the given name and argument types '", "'.") {
        let (name, types) = call.split_once('(')?;
        return Some(undefined(format!("{name}({})", types_of(types.trim_end_matches(')')))));
    }
    if let Some(name) = between(text, "to satisfy a call to '", "'") {
        let types = between(text, "coercion from ", " to the signature").map(types_of).unwrap_or_default();
        return Some(undefined(format!("{name}({types})")));
    }
    if let Some(name) = between(text, "Function '", "'")
        && (text.contains("user-defined coercion failed")
            || text.contains("expects")
            || text.contains("failed to match any signature")
            || text.contains("does not support"))
    {
        return Some(undefined(name.to_owned()));
    }
    if let Some(name) = between(text, "'", "' does not support zero arguments") {
        return Some(undefined(format!("{name}()")));
    }
    if text.contains("[return_type] SUM not supported for ") {
        let data_type = text.rsplit("not supported for ").next().map(type_of).unwrap_or_default();
        return Some(undefined(format!("sum({data_type})")));
    }
    if let Some(name) = between(text, "Table function '", "' not found").or_else(|| between(text, "table function '", "' not found")) {
        return Some(undefined(format!("{name}()")));
    }
    None
}

fn query(text: &str) -> Option<Error> {
    aggregates(text)
        .or_else(|| operators(text))
        .or_else(|| columns(text))
        .or_else(|| subqueries(text))
        .or_else(|| counts(text))
        .or_else(|| unknown_syntax(text))
}

/// Grouping and aggregates.
fn aggregates(text: &str) -> Option<Error> {
    if text.contains("must appear in the GROUP BY clause") {
        let column = between(text, "column \"", "\" must").or_else(|| between(text, "references: ", " must"))?;
        return Some(Error::new(
            SqlState::GROUPING_ERROR,
            format!("column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function"),
        ));
    }
    if text.contains("ggregate function calls cannot be nested") {
        return Some(Error::new(SqlState::GROUPING_ERROR, "aggregate function calls cannot be nested"));
    }
    if text.contains("ggregate function calls cannot contain window function calls") {
        return Some(Error::new(SqlState::GROUPING_ERROR, "aggregate function calls cannot contain window function calls"));
    }
    if text.contains("Aggregate functions are not allowed in the WHERE") || (text.contains("ggregate function") && text.contains("WHERE")) {
        return Some(Error::new(SqlState::GROUPING_ERROR, "aggregate functions are not allowed in WHERE"));
    }
    if let Some(position) = between(text, "Cannot find column with position ", " in SELECT clause") {
        return Some(Error::new(SqlState::INVALID_COLUMN_REFERENCE, format!("GROUP BY position {position} is not in select list")));
    }
    None
}

/// Operators and conditions over types that do not fit.
fn operators(text: &str) -> Option<Error> {
    if let Some(operation) = between(text, "Cannot coerce arithmetic expression ", " to valid types") {
        let mut words = operation.splitn(2, [' ']);
        let (left, rest) = (words.next()?, words.next()?);
        let (operator, right) = rest.trim().split_once(' ')?;
        return Some(no_operator(operator, left, right));
    }
    if let Some(operation) = text.split("Cannot infer common string type for string concat operation ").nth(1) {
        let (left, right) = operation.lines().next()?.split_once(" || ")?;
        return Some(no_operator("||", left, right));
    }
    if let Some(operation) = between(text, "Cannot infer common argument type for comparison operation ", "\0")
        .or_else(|| text.split("Cannot infer common argument type for comparison operation ").nth(1))
        .or_else(|| text.split("Cannot infer common argument type for logical boolean operation ").nth(1))
        .or_else(|| text.split("Cannot infer common argument type for regex operation ").nth(1))
    {
        let mut words = operation.lines().next()?.split(' ');
        let (left, operator) = (words.next()?, words.next()?);
        let right = words.collect::<Vec<_>>().join(" ");
        return Some(no_operator(operator, left, &right));
    }
    if let Some(found) = text.split("nary operator 'NOT' requires a boolean expression, got ").nth(1) {
        return Some(mismatch(format!("argument of NOT must be type boolean, not type {}", type_of(found.lines().next()?))));
    }
    if text.contains("nary operator '-' only supports") {
        let error = Error::new(SqlState::UNDEFINED_FUNCTION, "operator does not exist: - before a value of this type");
        return Some(error.hint("No operator matches the given name and argument type. You might need to add an explicit type cast."));
    }
    if text.contains("Cannot create filter with non-boolean predicate") {
        let found = text.rsplit("returning ").next().map(type_of).unwrap_or_default();
        return Some(mismatch(format!("argument of WHERE must be type boolean, not type {found}")));
    }
    if text.contains("Failed to coerce then") || text.contains("Failed to coerce case") || text.contains("CASE types") {
        return Some(mismatch("CASE types cannot be matched".to_owned()));
    }
    None
}

/// Select lists and set operations.
fn columns(text: &str) -> Option<Error> {
    if text.contains("require unique expression names") {
        let name = between(text, "the expression \"", "\" at").unwrap_or_default();
        let name = name.rsplit(['.', ' ']).next().unwrap_or(name);
        return Some(
            Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once"))
                .hint("Give one of them an alias."),
        );
    }
    if text.contains("queries have different number of columns")
        || text.contains("have the same number of columns")
        || text.contains("different number of columns")
    {
        return Some(Error::new(SqlState::SYNTAX_ERROR, "each UNION, INTERSECT or EXCEPT query must have the same number of columns"));
    }
    if text.contains("Inconsistent data type across values list") || text.contains("Inconsistent data length across values list") {
        return Some(Error::new(SqlState::SYNTAX_ERROR, "VALUES lists must all be the same length and of matching types"));
    }
    if text.contains("UNION types ") || text.contains("Incompatible inputs for Union") || text.contains("type_coercion for union") {
        return Some(mismatch("UNION types cannot be matched".to_owned()));
    }
    if text.contains("SELECT DISTINCT, ORDER BY expressions") {
        return Some(Error::new(
            SqlState::INVALID_COLUMN_REFERENCE,
            "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
        ));
    }
    if text.contains("SELECT DISTINCT ON expressions must match") {
        return Some(Error::new(
            SqlState::INVALID_COLUMN_REFERENCE,
            "SELECT DISTINCT ON expressions must match initial ORDER BY expressions",
        ));
    }
    if text.contains("WITH query name") && text.contains("specified more than once") {
        let name = between(text, "name \"", "\"").unwrap_or_default();
        return Some(Error::new(SqlState("42712"), format!("WITH query name \"{name}\" specified more than once")));
    }
    None
}

/// Subqueries.
fn subqueries(text: &str) -> Option<Error> {
    if text.contains("Scalar subquery should only return one column") || text.contains("should only return one column") {
        return Some(Error::new(SqlState::SYNTAX_ERROR, "subquery must return only one column"));
    }
    if text.contains("scalar subquery must be aggregated") {
        return Some(
            Error::unsupported("a correlated subquery that may return more than one row is not supported")
                .hint("Aggregate its column, or write it as a join."),
        );
    }
    if text.contains("orrelated scalar subquery can only be used in") {
        return Some(Error::unsupported("a correlated subquery in this place is not supported").hint("Compute it in the select list."));
    }
    if text.contains("more than one row") {
        return Some(Error::new(SqlState::CARDINALITY_VIOLATION, "more than one row returned by a subquery used as an expression"));
    }
    if text.contains("does not support logical expression") {
        let what = if text.contains("OuterReferenceColumn") { "this correlated subquery" } else { "a subquery in this place" };
        return Some(Error::unsupported(format!("{what} is not supported")).hint("Write it as a join."));
    }
    None
}

/// ORDER BY, LIMIT and OFFSET.
fn counts(text: &str) -> Option<Error> {
    if text.contains("Order by column out of bounds") || text.contains("Order by index starts at 1") {
        let position = between(text, "specified: ", ",").unwrap_or("0").trim();
        return Some(Error::new(SqlState::INVALID_COLUMN_REFERENCE, format!("ORDER BY position {position} is not in select list")));
    }
    if text.contains("LIMIT must be >= 0") || (text.contains("Limit") && text.contains(">= 0")) {
        return Some(Error::new(SqlState("2201W"), "LIMIT must not be negative"));
    }
    if text.contains("OFFSET must be >=0") || (text.contains("Offset") && text.contains(">= 0")) {
        return Some(Error::new(SqlState("2201X"), "OFFSET must not be negative"));
    }
    if let Some(found) = text.split("Expected LIMIT to be an integer or null, but got ").nth(1) {
        return Some(mismatch(format!("argument of LIMIT must be type bigint, not type {}", type_of(found))));
    }
    if let Some(found) = text.split("Expected OFFSET to be an integer or null, but got ").nth(1) {
        return Some(mismatch(format!("argument of OFFSET must be type bigint, not type {}", type_of(found))));
    }
    None
}

/// Syntax that the planner does not know.
fn unknown_syntax(text: &str) -> Option<Error> {
    if text.contains("Unsupported Value") {
        return Some(Error::unsupported("this kind of literal is not supported"));
    }
    if text.contains("Unsupported ast node") {
        return Some(Error::unsupported("this kind of expression is not supported"));
    }
    None
}

fn mismatch(message: String) -> Error {
    Error::new(SqlState::DATATYPE_MISMATCH, message)
}

fn no_operator(operator: &str, left: &str, right: &str) -> Error {
    Error::new(SqlState::UNDEFINED_FUNCTION, format!("operator does not exist: {} {operator} {}", type_of(left), type_of(right)))
        .hint("No operator matches the given name and argument types. You might need to add explicit type casts.")
}

/// The first line, without DataFusion's framing, in PostgreSQL's style.
fn first_line(text: &str) -> String {
    const FRAMES: [&str; 14] = [
        "Error during planning: ",
        "This feature is not implemented: ",
        "Execution error: ",
        "Internal error: ",
        "External error: ",
        "Arrow error: ",
        "Optimizer rule ",
        "type_coercion\ncaused by\n",
        "Schema error: ",
        "SQL error: ",
        "Cast error: ",
        "Parser error: ",
        "Compute error: ",
        "Invalid argument error: ",
    ];
    let mut text = text;
    while let Some(rest) = FRAMES.iter().find_map(|frame| text.strip_prefix(frame)) {
        text = rest;
    }
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    let mut characters = line.chars();
    match (characters.next(), characters.clone().next()) {
        // An acronym keeps its capitals.
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => first.to_lowercase().chain(characters).collect(),
        _ => line.to_owned(),
    }
}
