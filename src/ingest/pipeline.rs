//! The rules of one table, applied to batches: a pass over each column, and a look at single rows only to word an error.
//!
//! *Invariants*: (1) what comes out keeps every rule of the table; (2) of several rows that break one, the first is
//! reported, and of several rules that it breaks the first in PostgreSQL's order: length, NOT NULL, CHECK, then max_future.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringViewArray, StringViewBuilder, new_null_array};
use arrow::compute::kernels::aggregate::max;
use arrow::compute::kernels::zip::zip;
use arrow::datatypes::{DataType, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;

use crate::catalog::bind::Binder;
use crate::catalog::{Column, Table};
use crate::clock::Micros;
use crate::error::{Error, Result, SqlState};
use crate::event::{Target, values};
use crate::ingest::defaults::{self, CLIENT_COLUMNS, Client};
use crate::types::SqlType;
use crate::types::text::interval::write_postgres;
use crate::types::text::scalar::fit;
use crate::types::text::{Style, Writer};
use crate::types::zone::Zone;

/// Bytes of a value that "Failing row contains" shows, as in PostgreSQL.
const SHOWN_BYTES_MAX: usize = 64;

/// The rules of one table, bound once a statement.
#[derive(Debug)]
pub struct Pipeline {
    table: Arc<Table>,
    schema: SchemaRef,
    /// The same, all columns nullable: rows on the way, before NOT NULL has been checked.
    open_schema: SchemaRef,
    /// What defaults are computed over that name columns.
    row_schema: SchemaRef,
    targets: Vec<Target>,
    /// By column of the table.
    sources: Vec<Source>,
    generated: Vec<(usize, Arc<dyn PhysicalExpr>)>,
    checks: Vec<(String, Arc<dyn PhysicalExpr>)>,
    /// Columns of a limited number of characters.
    limited: Vec<usize>,
    /// The event-time column and the greatest time that it may hold.
    future: Option<(usize, Micros)>,
    zone: Zone,
}

/// Where a column's values come from.
#[derive(Debug)]
enum Source {
    /// A column of the source batch.
    Given(usize),
    /// A column of the source batch, and the default in the rows for which another column of it is false.
    GivenOr {
        position: usize,
        told: usize,
        default: Rule,
    },
    Default(Rule),
    Null,
    /// Computed from the others.
    Generated,
}

/// A column's default.
#[derive(Clone, Debug)]
enum Rule {
    Alone(Arc<dyn PhysicalExpr>),
    /// Computed from the row and from who sent it.
    OfRow(Arc<dyn PhysicalExpr>),
}

/// Why a batch was refused, and for which row's sake where that is known.
#[derive(Debug)]
pub struct Refusal {
    /// Row of the batch.
    pub row: Option<usize>,
    /// Message, detail and hint.
    pub error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal { row: None, error }
    }
}

impl Pipeline {
    /// Binds defaults, generated columns and checks. `columns` are the target columns in the source's order (indexes into
    /// the table). 428C9 when a generated column is named, 42701 when one is named twice.
    pub fn new(binder: &dyn Binder, table: &Arc<Table>, columns: &[usize], now: Micros) -> Result<Pipeline> {
        Pipeline::bind(binder, table, columns, now, false)
    }

    /// For rows each of which gives some of the columns: all that are not generated. The source has, behind them, a boolean column for
    /// each of [`Pipeline::told`] that says in which rows it was given.
    pub fn of_events(binder: &dyn Binder, table: &Arc<Table>, now: Micros) -> Result<Pipeline> {
        let columns: Vec<usize> = (0..table.columns.len()).filter(|column| table.columns[*column].generated.is_none()).collect();
        Pipeline::bind(binder, table, &columns, now, true)
    }

    /// For rows that may ask for the default of a column that they have: as [`Pipeline::of_events`], of some columns.
    pub fn with_defaults(binder: &dyn Binder, table: &Arc<Table>, columns: &[usize], now: Micros) -> Result<Pipeline> {
        Pipeline::bind(binder, table, columns, now, true)
    }

    fn bind(binder: &dyn Binder, table: &Arc<Table>, columns: &[usize], now: Micros, told: bool) -> Result<Pipeline> {
        let mut given = vec![None; table.columns.len()];
        for (position, index) in columns.iter().enumerate() {
            let column = table.columns.get(*index).ok_or_else(|| Error::internal("a target column is not the table's"))?;
            if column.generated.is_some() {
                return Err(Error::new(
                    SqlState::GENERATED_ALWAYS,
                    format!("cannot insert a non-DEFAULT value into column \"{}\"", column.name),
                )
                .detail(format!("Column \"{}\" is a generated column.", column.name)));
            }
            if given[*index].replace(position).is_some() {
                return Err(Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", column.name)));
            }
        }
        let schema = table.schema();
        let open_fields: Vec<_> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let open_schema: SchemaRef = Arc::new(Schema::new(open_fields));
        let sources = sources(binder, table, &given, told.then_some(columns.len()))?;
        let generated = generated(binder, table, &open_schema)?;
        let texts: Vec<_> = table.checks.iter().map(|check| check.expression.clone()).collect();
        let expressions = binder.bind_expressions(&open_schema, &texts, &vec![Some(DataType::Boolean); texts.len()])?;
        let checks = table.checks.iter().map(|check| check.name.clone()).zip(expressions).collect();
        let is_limited = |column: &Column| matches!(column.sql_type, SqlType::Varchar(Some(_)) | SqlType::Char(_));
        let limited = table.columns.iter().enumerate().filter(|(_, column)| is_limited(column)).map(|(index, _)| index).collect();
        let future = table.watermark.map(|watermark| (watermark.column, now.saturating_add(table.options.max_future_us)));
        let target = |index: &usize| {
            let Column { name, sql_type, .. } = &table.columns[*index];
            Target { name: name.clone(), sql_type: sql_type.clone() }
        };
        let targets = columns.iter().map(target).collect();
        let table = Arc::clone(table);
        let row_schema = defaults::schema(&table);
        Ok(Pipeline { table, schema, open_schema, row_schema, targets, sources, generated, checks, limited, future, zone: Zone::UTC })
    }

    /// With the session's time zone, for literals without an offset and for the rows in errors. UTC without it.
    #[must_use]
    pub fn in_zone(mut self, zone: Zone) -> Pipeline {
        self.zone = zone;
        self
    }

    /// The table that the rows are for.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Of [`Pipeline::targets`], those with a default that takes the place of what a row does not give.
    pub fn told(&self) -> Vec<usize> {
        let mut told: Vec<_> = self
            .sources
            .iter()
            .filter_map(|source| match source {
                Source::GivenOr { position, told, .. } => Some((*told, *position)),
                Source::Given(_) | Source::Default(_) | Source::Null | Source::Generated => None,
            })
            .collect();
        told.sort_unstable();
        told.into_iter().map(|(_, position)| position).collect()
    }

    /// The columns of the source, in its order.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Turns a batch of source columns (already of the target columns' Arrow types, in `columns` order) into a batch of the
    /// table's schema. 23502, 23514, 22008 and 22001 name the row in the detail, as PostgreSQL ("Failing row contains (...).").
    pub fn complete(&self, source: RecordBatch) -> Result<RecordBatch> {
        self.complete_rows(source).map_err(|refusal| refusal.error)
    }

    /// Decodes the row list of a literal INSERT (`(1, 'a'), (2, NULL)`) and completes it.
    pub fn literals(&self, rows: &str) -> Result<RecordBatch> {
        self.complete(values::decode(rows, &self.targets, self.zone)?)
    }

    /// As [`Pipeline::complete`], with the row that is at fault.
    pub fn complete_rows(&self, source: RecordBatch) -> Result<RecordBatch, Refusal> {
        self.complete_rows_of(source, &Client::default())
    }

    /// As [`Pipeline::complete_rows`], for rows of which it is known who sent them.
    pub fn complete_rows_of(&self, source: RecordBatch, client: &Client) -> Result<RecordBatch, Refusal> {
        let rows = source.num_rows();
        let mut arrays = self.place(&source)?;
        self.place_rules_of_rows(&source, client, &mut arrays)?;
        let mut first: Option<Refusal> = None;
        for index in &self.limited {
            match self.fitted(*index, &arrays[*index]) {
                Ok(None) => {}
                Ok(Some(array)) => arrays[*index] = array,
                Err(refusal) => keep_first(&mut first, refusal),
            }
        }
        let mut batch = self.batch(&self.open_schema, arrays, rows)?;
        if !self.generated.is_empty() {
            let mut arrays = batch.columns().to_vec();
            for (index, expression) in &self.generated {
                let array = evaluate(expression.as_ref(), &batch)?;
                arrays[*index] = self.fitted(*index, &array)?.unwrap_or(array);
            }
            batch = self.batch(&self.open_schema, arrays, rows)?;
        }
        // A row that breaks a later rule may still come before.
        if let Some(refusal) = self.null_violation(&batch) {
            keep_first(&mut first, refusal);
        }
        if let Some(refusal) = self.check_violation(&batch)? {
            keep_first(&mut first, refusal);
        }
        if let Some(refusal) = self.future_violation(&batch) {
            keep_first(&mut first, refusal);
        }
        match first {
            Some(refusal) => Err(refusal),
            None => Ok(self.batch(&self.schema, batch.columns().to_vec(), rows)?),
        }
    }

    fn batch(&self, schema: &SchemaRef, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(|error| Error::internal(error.to_string()))
    }

    /// The table's columns, those that are generated still NULL.
    fn place(&self, source: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let rows = source.num_rows();
        let no_columns = self.batch(&Arc::new(Schema::empty()), Vec::new(), rows)?;
        let mut arrays = Vec::with_capacity(self.sources.len());
        for (index, column) in self.sources.iter().enumerate() {
            arrays.push(match column {
                Source::Given(position) if *position < source.num_columns() => Arc::clone(source.column(*position)),
                Source::Given(_) => return Err(Error::internal("a source batch has too few columns")),
                Source::GivenOr { position, default: Rule::OfRow(_), .. } if *position < source.num_columns() => {
                    Arc::clone(source.column(*position))
                }
                Source::GivenOr { position, told, default: Rule::Alone(default) } if *told < source.num_columns() => {
                    let given = truths(source, *told)?;
                    match given.true_count() {
                        count if count == rows => Arc::clone(source.column(*position)),
                        0 => evaluate(default.as_ref(), &no_columns)?,
                        _ => zip(given, source.column(*position), &evaluate(default.as_ref(), &no_columns)?)
                            .map_err(|error| Error::internal(error.to_string()))?,
                    }
                }
                Source::GivenOr { .. } => return Err(Error::internal("a source batch has too few columns")),
                Source::Default(Rule::Alone(expression)) => evaluate(expression.as_ref(), &no_columns)?,
                Source::Default(Rule::OfRow(_)) | Source::Null | Source::Generated => {
                    new_null_array(self.open_schema.field(index).data_type(), rows)
                }
            });
        }
        Ok(arrays)
    }

    /// Computes the defaults that name columns, for the rows that do not give them.
    fn place_rules_of_rows(&self, source: &RecordBatch, client: &Client, arrays: &mut [ArrayRef]) -> Result<()> {
        let rows = source.num_rows();
        let mut row: Option<RecordBatch> = None;
        let mut found = Vec::new();
        for (index, column) in self.sources.iter().enumerate() {
            let (given, expression) = match column {
                Source::GivenOr { told, default: Rule::OfRow(expression), .. } => (Some(truths(source, *told)?), expression),
                Source::Default(Rule::OfRow(expression)) => (None, expression),
                _ => continue,
            };
            if given.is_some_and(|given| given.true_count() == rows) {
                continue;
            }
            let over = match &mut row {
                Some(row) => row,
                None => row.insert(self.row(arrays, client, rows)?),
            };
            let computed = evaluate(expression.as_ref(), over)?;
            let placed = match given {
                Some(given) => zip(given, &arrays[index], &computed).map_err(|error| Error::internal(error.to_string()))?,
                None => computed,
            };
            found.push((index, placed));
        }
        found.into_iter().for_each(|(index, array)| arrays[index] = array);
        Ok(())
    }

    /// The columns as they are so far, and who sent the rows.
    fn row(&self, arrays: &[ArrayRef], client: &Client, rows: usize) -> Result<RecordBatch> {
        let mut columns = arrays.to_vec();
        for name in CLIENT_COLUMNS.into_iter().filter(|name| self.table.column(name).is_none()) {
            let value = if name == CLIENT_COLUMNS[0] { &client.ip } else { &client.user_agent };
            columns.push(Arc::new(StringViewArray::from_iter(std::iter::repeat_n(value.as_deref(), rows))));
        }
        self.batch(&self.row_schema, columns, rows)
    }

    /// The column cut to its type's length, none where it fits as it is (the usual case).
    fn fitted(&self, index: usize, array: &ArrayRef) -> Result<Option<ArrayRef>, Refusal> {
        let sql_type = &self.table.columns[index].sql_type;
        let (length, padded) = match sql_type {
            SqlType::Varchar(Some(length)) => (*length, false),
            SqlType::Char(length) => (*length, true),
            _ => return Ok(None),
        };
        let Some(texts) = array.as_string_view_opt() else { return Ok(None) };
        // A view's low 32 bits are its length in bytes, which are never fewer than characters.
        let short = texts.views().iter().all(|view| *view as u32 <= length);
        let unpadded = !padded || !texts.iter().flatten().any(|text| text.ends_with(' '));
        if short && unpadded {
            return Ok(None);
        }
        let mut fitted = StringViewBuilder::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            match text.map(|text| fit(sql_type, text)).transpose() {
                Ok(text) => fitted.append_option(text),
                Err(error) => return Err(Refusal { row: Some(row), error }),
            }
        }
        Ok(Some(Arc::new(fitted.finish())))
    }

    fn null_violation(&self, batch: &RecordBatch) -> Option<Refusal> {
        let mut first: Option<(usize, &Column)> = None;
        for (column, array) in self.table.columns.iter().zip(batch.columns()) {
            if column.nullable || array.logical_null_count() == 0 {
                continue;
            }
            let nulls = array.logical_nulls()?;
            let row = (0..nulls.len()).find(|row| nulls.is_null(*row))?;
            if first.is_none_or(|(earlier, _)| row < earlier) {
                first = Some((row, column));
            }
        }
        let (row, column) = first?;
        let message = format!("null value in column \"{}\" of relation \"{}\" violates not-null constraint", column.name, self.table.name);
        Some(self.refuse(SqlState::NOT_NULL_VIOLATION, message, batch, row))
    }

    fn check_violation(&self, batch: &RecordBatch) -> Result<Option<Refusal>> {
        let mut first: Option<(usize, &str)> = None;
        for (name, expression) in &self.checks {
            let array = evaluate(expression.as_ref(), batch)?;
            let held = array.as_boolean_opt().ok_or_else(|| Error::internal("a check is not boolean"))?;
            if held.false_count() == 0 {
                continue;
            }
            let row = (0..held.len()).find(|row| held.is_valid(*row) && !held.value(*row));
            if let Some(row) = row.filter(|row| first.is_none_or(|(earlier, _)| *row < earlier)) {
                first = Some((row, name));
            }
        }
        Ok(first.map(|(row, name)| {
            let message = format!("new row for relation \"{}\" violates check constraint \"{name}\"", self.table.name);
            self.refuse(SqlState::CHECK_VIOLATION, message, batch, row)
        }))
    }

    fn future_violation(&self, batch: &RecordBatch) -> Option<Refusal> {
        let (column, latest) = self.future?;
        let times = batch.column(column).as_primitive_opt::<TimestampMicrosecondType>()?;
        if max(times)? <= latest {
            return None;
        }
        let row = (0..times.len()).find(|row| times.is_valid(*row) && times.value(*row) > latest)?;
        let name = &self.table.columns[column].name;
        let shown = self.shown(batch, row, column);
        let refusal = self.refuse(
            SqlState::DATETIME_FIELD_OVERFLOW,
            format!("{name} {shown} lies too far in the future for relation \"{}\"", self.table.name),
            batch,
            row,
        );
        let mut ahead = Vec::new();
        let (days, us) = (self.table.options.max_future_us / 86_400_000_000, self.table.options.max_future_us % 86_400_000_000);
        let days = i32::try_from(days).unwrap_or(i32::MAX);
        write_postgres(arrow::datatypes::IntervalMonthDayNano::new(0, days, us.saturating_mul(1000)), &mut ahead);
        let ahead = String::from_utf8_lossy(&ahead).into_owned();
        let hint = format!(
            "Event times may lie at most {ahead} ahead of the server's clock: correct the sender's clock, or raise the table's max_future."
        );
        Some(Refusal { error: refusal.error.hint(hint), ..refusal })
    }

    fn refuse(&self, state: SqlState, message: String, batch: &RecordBatch, row: usize) -> Refusal {
        let mut detail = String::from("Failing row contains (");
        for column in 0..batch.num_columns() {
            let separator = if column == 0 { "" } else { ", " };
            // Writing to a String cannot fail.
            _ = write!(detail, "{separator}{}", self.shown(batch, row, column));
        }
        detail.push_str(").");
        Refusal { row: Some(row), error: Error::new(state, message).detail(detail) }
    }

    /// A value as "Failing row contains" shows it.
    fn shown(&self, batch: &RecordBatch, row: usize, column: usize) -> String {
        let style = Style { time_zone: self.zone, ..Style::default() };
        let array = batch.column(column).slice(row, 1);
        let Ok(writer) = Writer::new(array.as_ref(), &self.table.columns[column].sql_type, &style) else { return "?".to_owned() };
        if writer.is_null(0) {
            return "null".to_owned();
        }
        let mut text = Vec::new();
        writer.write(0, &mut text);
        let text = String::from_utf8_lossy(&text);
        if text.len() <= SHOWN_BYTES_MAX {
            return text.into_owned();
        }
        format!("{}...", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)])
    }
}

/// Where each column of the table comes from. With `told`, columns of the source from there on say which rows give a column that
/// has a default.
fn sources(binder: &dyn Binder, table: &Table, given: &[Option<usize>], told: Option<usize>) -> Result<Vec<Source>> {
    // Those that stand alone, then those that name columns.
    let (mut texts, mut types, mut kinds) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], Vec::new());
    for (column, position) in table.columns.iter().zip(given) {
        if let (true, None, Some(default)) = (position.is_none() || told.is_some(), &column.generated, &column.default) {
            let kind = usize::from(defaults::is_of_row(table, default)?);
            texts[kind].push(default.clone());
            types[kind].push(Some(column.sql_type.arrow()));
            kinds.push(kind);
        }
    }
    let bind = |kind: usize, schema: SchemaRef| match texts[kind].is_empty() {
        true => Ok(Vec::new()),
        false => binder.bind_expressions(&schema, &texts[kind], &types[kind]),
    };
    let mut bound = [bind(0, Arc::new(Schema::empty()))?.into_iter(), bind(1, defaults::schema(table))?.into_iter()];
    let mut rules = kinds.into_iter().map(|kind| {
        let expression = bound[kind].next()?;
        Some(if kind == 0 { Rule::Alone(expression) } else { Rule::OfRow(expression) })
    });
    let mut next_rule = move || rules.next().flatten();
    let mut next_told = told.unwrap_or(0);
    let source = |(column, position): (&Column, &Option<usize>)| {
        let unbound = || Error::internal("a default was not bound");
        Ok(match (position, &column.generated, &column.default) {
            (Some(position), None, Some(_)) if told.is_some() => {
                next_told += 1;
                Source::GivenOr { position: *position, told: next_told - 1, default: next_rule().ok_or_else(unbound)? }
            }
            (Some(position), ..) => Source::Given(*position),
            (None, Some(_), _) => Source::Generated,
            (None, None, None) => Source::Null,
            (None, None, Some(_)) => Source::Default(next_rule().ok_or_else(unbound)?),
        })
    };
    table.columns.iter().zip(given).map(source).collect()
}

fn generated(binder: &dyn Binder, table: &Table, schema: &SchemaRef) -> Result<Vec<(usize, Arc<dyn PhysicalExpr>)>> {
    let (mut indexes, mut texts, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate() {
        if let Some(expression) = &column.generated {
            indexes.push(index);
            texts.push(expression.clone());
            types.push(Some(column.sql_type.arrow()));
        }
    }
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    Ok(indexes.into_iter().zip(binder.bind_expressions(schema, &texts, &types)?).collect())
}

fn truths(source: &RecordBatch, column: usize) -> Result<&BooleanArray> {
    let found = source.columns().get(column).and_then(|array| array.as_boolean_opt());
    found.ok_or_else(|| Error::internal("a column of truths is none"))
}

/// Rows in order, and rules in the order in which they are looked at.
fn keep_first(first: &mut Option<Refusal>, refusal: Refusal) {
    if first.as_ref().is_none_or(|earlier| refusal.row < earlier.row) {
        *first = Some(refusal);
    }
}

fn evaluate(expression: &dyn PhysicalExpr, batch: &RecordBatch) -> Result<ArrayRef> {
    expression.evaluate(batch).and_then(|value| value.into_array(batch.num_rows())).map_err(of_evaluation)
}

/// What went wrong when a default, generated column or check was computed.
fn of_evaluation(error: DataFusionError) -> Error {
    let own = |cause: &(dyn std::error::Error + 'static)| {
        std::iter::successors(Some(cause), |cause| cause.source()).find_map(|cause| cause.downcast_ref::<Error>()).cloned()
    };
    match error.find_root() {
        DataFusionError::External(cause) => own(cause.as_ref()).unwrap_or_else(|| Error::internal(error.to_string())),
        DataFusionError::ArrowError(cause, _) => match cause.as_ref() {
            ArrowError::DivideByZero => Error::new(SqlState::DIVISION_BY_ZERO, "division by zero"),
            ArrowError::ArithmeticOverflow(message) => {
                Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range").detail(format!("{message}."))
            }
            ArrowError::CastError(message) | ArrowError::ParseError(message) => {
                Error::new(SqlState::INVALID_TEXT_REPRESENTATION, message.clone())
            }
            ArrowError::ExternalError(cause) => own(cause.as_ref()).unwrap_or_else(|| Error::internal(error.to_string())),
            _ => Error::internal(error.to_string()),
        },
        _ => Error::internal(error.to_string()),
    }
}
