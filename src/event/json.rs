//! Events as JSON: one object, an array of objects, or objects one after the other (NDJSON).
//!
//! *Place*: called by `ingest::events`. The keys are column names; what has no column goes into the `properties` column, where
//! there is one. Messages of which each is an event ([`JsonDecoder::decode_messages`]) stand in one text, so that a thousand cost one call.
//!
//! A value's text is read as COPY would read it: strings without quotes and escapes, numbers and booleans as they are written, objects and
//! arrays as JSON (an array in an array column by its elements). `null` is NULL; a key that is missing leaves the column its default. Of
//! equal keys the last counts.
//!
//! *Invariants*: (1) text that is not JSON refuses the whole input, with the place; of NDJSON only the rest of its line, as an event of its own; of
//! messages, the one; (2) an event that is JSON and does not fit is refused
//! alone, and every event that is not refused becomes a row, in order; (3) the work is linear in the input, whatever is refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use crate::error::{Error, Result, SqlState};
use crate::event::Target;
use crate::event::column::ColumnBuilder;
use crate::event::copy::shown;
use crate::event::fields::{CHUNK_BYTES_MAX, Fields};
use crate::types::SqlType;
use crate::types::text::json::Scan;
use crate::types::zone::Zone;

/// Events whose fields are found before columns read them.
const BLOCK_ROWS: usize = 1024;

/// The column that takes what has no column of its own.
pub const PROPERTIES: &str = "properties";

/// Decodes events for one set of columns.
#[derive(Debug)]
pub struct JsonDecoder {
    relation: String,
    targets: Vec<Target>,
    schema: SchemaRef,
    /// Targets for which a last column says whether the event gave them.
    told: Vec<usize>,
    names: Names,
    /// The target that takes what has no column.
    properties: Option<usize>,
    /// Without such a target, a key that has no column is passed over.
    lenient: bool,
    zone: Zone,
}

/// What a key stands for at one level of an event.
#[derive(Debug, Default)]
struct Names(HashMap<String, Entry>);

#[derive(Debug, Default)]
struct Entry {
    column: Option<usize>,
    /// Of columns called `key.other`.
    below: Names,
}

/// The events of an input.
#[derive(Debug)]
pub struct JsonRows {
    /// A row an event that was not refused: the targets' columns, then a boolean for each column that had to be told of.
    pub batch: RecordBatch,
    /// Of each row, which event of the input it is.
    pub positions: Vec<usize>,
    /// Of each row, where its text is.
    pub spans: Vec<Range<usize>>,
    /// The others, in order.
    pub refused: Vec<RefusedEvent>,
}

/// An event that does not fit.
#[derive(Clone, Debug)]
pub struct RefusedEvent {
    /// Which one of the input, from 0.
    pub position: usize,
    /// Where its text is.
    pub span: Range<usize>,
    /// Why.
    pub error: Error,
}

/// An input of which nothing is kept, because more than `refused_max` of its events are refused. It goes no further then: reasons take more
/// memory than what they are about.
pub fn too_many_refused(refused: &[RefusedEvent], refused_max: usize) -> Error {
    let first = refused.first().map(|refused| format!("Event {}: {}.", refused.position, refused.error)).unwrap_or_default();
    Error::new(SqlState::DATA_EXCEPTION, format!("more than {refused_max} events of the request break a rule"))
        .detail(format!("Nothing of it was kept. {first}"))
}

impl JsonDecoder {
    /// For a relation's columns. With `told` the batch says for these targets whether they were given.
    pub fn new(relation: &str, targets: Vec<Target>, told: Vec<usize>, zone: Zone) -> JsonDecoder {
        let mut names = Names::default();
        for (index, target) in targets.iter().enumerate() {
            names.add(&target.name, index);
        }
        let properties = targets.iter().position(|target| target.name == PROPERTIES && target.sql_type == SqlType::Jsonb);
        let told_fields = told.iter().map(|target| Field::new(format!("{} given", targets[*target].name), DataType::Boolean, false));
        let fields: Vec<_> = targets.iter().map(|target| target.sql_type.field(&target.name, true)).chain(told_fields).collect();
        JsonDecoder {
            relation: relation.to_owned(),
            targets,
            schema: Arc::new(Schema::new(fields)),
            told,
            names,
            properties,
            lenient: false,
            zone,
        }
    }

    /// Passes over keys that have no column instead of refusing the event, where there is no column `properties` for them.
    #[must_use]
    pub fn lenient(mut self) -> JsonDecoder {
        self.lenient = true;
        self
    }

    /// Decodes an input. 22P02 with the place when it is not JSON, 54000 when it is too long, 22000 when more than `refused_max` of its
    /// events do not fit.
    pub fn decode(&self, text: &str, refused_max: usize) -> Result<JsonRows> {
        if text.len() > CHUNK_BYTES_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the events are too long"));
        }
        let mut form = Form { careful: false, lines: false };
        loop {
            match self.run(text, None, form, refused_max) {
                Ok(Some(rows)) => return Ok(rows),
                // Some value does not fit its column: once more, looking at each value before a column takes it.
                Ok(None) if !form.careful => form.careful = true,
                Ok(None) => return Err(Error::internal("a value fits its column and does not")),
                // Once more, line by line: what is broken ends with its line.
                Err(Stop::Malformed(_)) if !form.lines && is_lines(text) => form.lines = true,
                Err(Stop::Malformed(error) | Stop::Other(error)) => return Err(error),
            }
        }
    }

    /// None when a value does not fit and that was not looked for.
    fn run(&self, text: &str, messages: Option<&[Range<usize>]>, form: Form, refused_max: usize) -> Result<Option<JsonRows>, Stop> {
        let rows_about = messages.map_or(text.len() / 256 + 1, <[_]>::len);
        let state = if messages.is_some() { State::InMessages } else { State::Start };
        let messages = messages.unwrap_or_default();
        let scan = Scan::new(if form.lines { "" } else { text });
        let mut reader = Events { decoder: self, scan, text, lines: form.lines, line_end: 0, next_line: 0, state, position: 0, messages };
        let mut columns: Vec<_> =
            self.targets.iter().map(|target| ColumnBuilder::new(&target.sql_type, self.zone, rows_about.min(BLOCK_ROWS))).collect();
        let mut told: Vec<_> = self.told.iter().map(|_| BooleanBufferBuilder::new(rows_about.min(BLOCK_ROWS))).collect();
        let mut fields = Fields::new(text, self.targets.len());
        let mut found = Found::default();
        let mut more = true;
        while more {
            fields.clear();
            let first = found.positions.len();
            while more && fields.rows() < BLOCK_ROWS && found.refused.len() <= refused_max {
                more = match reader.state {
                    State::InMessages => reader.message(&mut fields, &mut found),
                    State::Start | State::InArray | State::InSequence => reader.event(&mut fields, &mut found).map_err(Stop::Malformed)?,
                };
            }
            if form.careful {
                self.refuse_misfits(&mut fields, first, &mut found);
            }
            if found.refused.len() > refused_max {
                return Err(Stop::Other(too_many_refused(&found.refused, refused_max)));
            }
            for (index, column) in columns.iter_mut().enumerate() {
                if column.append(fields.column(index)).is_err() {
                    return Ok(None);
                }
            }
            for (target, given) in self.told.iter().zip(&mut told) {
                (0..fields.rows()).for_each(|row| given.append(fields.is_given(row, *target)));
            }
        }
        let rows = found.positions.len();
        let mut arrays = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>()?;
        arrays.extend(told.into_iter().map(|mut given| Arc::new(BooleanArray::new(given.finish(), None)) as ArrayRef));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(internal)?;
        if found.unfit.is_empty() {
            let Found { positions, spans, refused, .. } = found;
            return Ok(Some(JsonRows { batch, positions, spans, refused }));
        }
        let keep: Vec<bool> = {
            let mut keep = vec![true; rows];
            found.unfit.iter().for_each(|row| keep[*row] = false);
            keep
        };
        let batch = filter_record_batch(&batch, &BooleanArray::from(keep.clone())).map_err(internal)?;
        let mut kept = keep.iter();
        found.positions.retain(|_| kept.next().copied().unwrap_or(true));
        let mut kept = keep.iter();
        found.spans.retain(|_| kept.next().copied().unwrap_or(true));
        found.refused.sort_by_key(|refused| refused.position);
        let Found { positions, spans, refused, .. } = found;
        Ok(Some(JsonRows { batch, positions, spans, refused }))
    }

    /// Refuses the rows of a block that have a value which does not fit, and takes the value away. `first` is the block's first row.
    fn refuse_misfits(&self, fields: &mut Fields<'_>, first: usize, found: &mut Found) {
        for row in 0..fields.rows() {
            for (column, target) in self.targets.iter().enumerate() {
                if target.sql_type == SqlType::Text {
                    continue;
                }
                let Some(value) = fields.get(row, column) else { continue };
                let mut one = Fields::new(value, 1);
                one.push(0, value.len());
                let Err(misfit) = ColumnBuilder::new(&target.sql_type, self.zone, 1).append(one.column(0)) else { continue };
                let place = format!("column {}: \"{}\"", target.name, shown(value));
                fields.clear_field(row, column);
                // Of several misfits the first by column tells why.
                if found.unfit.last() != Some(&(first + row)) {
                    found.unfit.push(first + row);
                    let (position, span) = (found.positions[first + row], found.spans[first + row].clone());
                    found.refused.push(RefusedEvent { position, span, error: misfit.error.context(place) });
                }
            }
        }
    }
}

impl Names {
    fn add(&mut self, name: &str, column: usize) {
        self.0.entry(name.to_owned()).or_default().column = Some(column);
        if let Some((key, rest)) = name.split_once('.').filter(|(key, rest)| !key.is_empty() && !rest.is_empty()) {
            self.0.entry(key.to_owned()).or_default().below.add(rest, column);
        }
    }
}

/// What has been found so far.
#[derive(Default)]
struct Found {
    positions: Vec<usize>,
    spans: Vec<Range<usize>>,
    refused: Vec<RefusedEvent>,
    /// Rows whose events are refused all the same.
    unfit: Vec<usize>,
}

impl Found {
    /// Takes in an event, which has opened a row or not: as a row, or as refused.
    fn place(&mut self, fields: &mut Fields<'_>, is_row: bool, (position, span): (usize, Range<usize>), refused: Option<Error>) {
        match refused {
            None => {
                self.positions.push(position);
                self.spans.push(span);
            }
            Some(error) => {
                if is_row {
                    fields.drop_last_row();
                }
                self.refused.push(RefusedEvent { position, span, error });
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    InArray,
    InSequence,
    InMessages,
}

struct Events<'a, 'd> {
    decoder: &'d JsonDecoder,
    scan: Scan<'a>,
    text: &'a str,
    /// The scan sees one line at a time.
    lines: bool,
    /// Where that line ends.
    line_end: usize,
    /// Where the next one begins.
    next_line: usize,
    state: State,
    position: usize,
    /// With [`State::InMessages`], where they are.
    messages: &'d [Range<usize>],
}

/// How an input is read.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Each value is looked at before a column takes it.
    careful: bool,
    /// No event goes on behind its line's end.
    lines: bool,
}

/// Why reading ended.
enum Stop {
    /// The text is not JSON.
    Malformed(Error),
    Other(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Other(error)
    }
}

/// Whether a text is NDJSON for all that some of its lines may be broken: of two lines or more half of them are whole, from a brace at the margin to its
/// partner. JSON that is laid out over several lines is not like that, and its inner objects must not pass for events.
fn is_lines(text: &str) -> bool {
    let (mut all, mut whole) = (0usize, 0usize);
    for line in text.lines().filter(|line| !line.trim_ascii().is_empty()) {
        all += 1;
        whole += usize::from(line.starts_with('{') && line.trim_ascii_end().ends_with('}'));
    }
    all > 1 && 2 * whole >= all
}

/// Members without a column, as the inside of an object.
#[derive(Default)]
struct Rest {
    text: String,
    /// The `properties` object that the event gave, its inside.
    given: Option<Range<usize>>,
}

impl<'a> Events<'a, '_> {
    /// Reads one event; false when there is none.
    fn event(&mut self, fields: &mut Fields<'a>, found: &mut Found) -> Result<bool> {
        if self.state == State::Start {
            self.state = match self.next_byte() {
                None => return Err(Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "there is no event in the input")),
                Some(b'[') if !self.lines => {
                    self.scan.step();
                    State::InArray
                }
                Some(_) => State::InSequence,
            };
        }
        match (self.state, self.next_byte(), self.position) {
            (State::InSequence, None, _) => return Ok(false),
            (State::InArray, Some(b']'), 0) => return self.end_of_array(),
            _ => {}
        }
        let start = self.scan.position();
        let position = self.position;
        self.position += 1;
        let outcome = match self.scan.peek() {
            Some(b'{') => {
                fields.open_row();
                self.object(fields)
            }
            _ => {
                let not_object = Error::new(SqlState::INVALID_PARAMETER_VALUE, "an event must be a JSON object");
                self.scan.value().map(|_| Some(not_object))
            }
        };
        let is_row = self.text.as_bytes().get(start) == Some(&b'{');
        let refused = match outcome {
            Ok(refused) => refused,
            Err(error) if self.lines => {
                let error = self.malformed(error);
                // The rest of the line cannot be told apart from what is broken.
                self.scan = Scan::at(&self.text[..self.line_end], self.line_end);
                Some(error)
            }
            Err(error) => return Err(self.malformed(error)),
        };
        let span = start..self.scan.position();
        found.place(fields, is_row, (position, span), refused);
        if self.state == State::InArray {
            match self.scan.peek() {
                Some(b',') => self.scan.step(),
                Some(b']') => return self.end_of_array(),
                _ => return Err(self.malformed(self.scan.unexpected("Expected \",\" or \"]\""))),
            }
        }
        Ok(true)
    }

    /// The next byte that is not blank; none at the end.
    fn next_byte(&mut self) -> Option<u8> {
        loop {
            let next = self.scan.peek();
            if next.is_some() || !self.lines || self.next_line >= self.text.len() {
                return next;
            }
            let from = self.next_line;
            let rest = &self.text.as_bytes()[from..];
            self.line_end = memchr::memchr(b'\n', rest).map_or(self.text.len(), |length| from + length);
            self.next_line = self.line_end + 1;
            self.scan = Scan::at(&self.text[..self.line_end], from);
        }
    }

    fn end_of_array(&mut self) -> Result<bool> {
        self.scan.step();
        match self.scan.peek() {
            None => Ok(false),
            Some(_) => Err(self.malformed(self.scan.unexpected("Expected end of input"))),
        }
    }

    /// Text that is not JSON: with the line and the character.
    fn malformed(&self, error: Error) -> Error {
        let before = self.text.get(..self.scan.position().min(self.text.len())).unwrap_or(self.text);
        let line = memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1;
        let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
        let event = self.position.saturating_sub(1);
        error.context(format!("JSON data, event {event}, line {line}, character {column}"))
    }

    /// An event. The inner error is why it is refused, the outer one is of text that is not JSON.
    fn object(&mut self, fields: &mut Fields<'a>) -> Result<Option<Error>> {
        let decoder = self.decoder;
        let mut rest = Rest::default();
        let mut refused = None;
        self.members(&decoder.names, fields, &mut rest, 0, &mut refused)?;
        if refused.is_none()
            && let Some(target) = decoder.properties
        {
            self.properties(target, rest, fields);
        }
        Ok(refused)
    }

    fn members(
        &mut self,
        names: &Names,
        fields: &mut Fields<'a>,
        rest: &mut Rest,
        depth: usize,
        refused: &mut Option<Error>,
    ) -> Result<()> {
        self.scan.step();
        let mut first = true;
        loop {
            match self.scan.peek() {
                Some(b'}') if first => break,
                Some(b'"') => {}
                _ => return Err(self.scan.unexpected(if first { "Expected string or \"}\"" } else { "Expected string" })),
            }
            first = false;
            let start = self.scan.position();
            let key = self.scan.string()?;
            let key_text = &self.text[start..self.scan.position()];
            if self.scan.peek() != Some(b':') {
                return Err(self.scan.unexpected("Expected \":\""));
            }
            self.scan.step();
            self.member(names, &key, key_text, fields, rest, depth, refused)?;
            match self.scan.peek() {
                Some(b',') => self.scan.step(),
                Some(b'}') => break,
                _ => return Err(self.scan.unexpected("Expected \",\" or \"}\"")),
            }
        }
        self.scan.step();
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one member of one event, with all that is being put together")]
    fn member(
        &mut self,
        names: &Names,
        key: &str,
        key_text: &str,
        fields: &mut Fields<'a>,
        rest: &mut Rest,
        depth: usize,
        refused: &mut Option<Error>,
    ) -> Result<()> {
        let entry = names.0.get(key);
        let next = self.scan.peek();
        if let Some(column) = entry.and_then(|entry| entry.column) {
            if depth == 0 && self.decoder.properties == Some(column) && next == Some(b'{') {
                let text = self.scan.value()?;
                let end = self.scan.position();
                rest.given = Some(end - text.len() + 1..end - 1);
                return Ok(());
            }
            return self.value(column, fields, refused);
        }
        if let Some(entry) = entry.filter(|entry| next == Some(b'{') && !entry.below.0.is_empty()) {
            let outer = rest.text.len();
            rest.member(key_text);
            rest.text.push('{');
            let inside = rest.text.len();
            self.members(&entry.below, fields, rest, depth + 1, refused)?;
            match rest.text.len() == inside {
                true => rest.text.truncate(outer),
                false => rest.text.push('}'),
            }
            return Ok(());
        }
        let value = self.scan.value()?;
        if self.decoder.properties.is_none() && self.decoder.lenient {
            return Ok(());
        }
        if self.decoder.properties.is_none() {
            refused.get_or_insert_with(|| {
                let relation = &self.decoder.relation;
                Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{}\" of relation \"{relation}\" does not exist", shown(key)))
                    .hint("Fields without a column are kept only in a table with a column properties of type jsonb.")
            });
            return Ok(());
        }
        rest.member(key_text);
        rest.text.push_str(value);
        Ok(())
    }

    /// The value of a column.
    fn value(&mut self, column: usize, fields: &mut Fields<'a>, refused: &mut Option<Error>) -> Result<()> {
        let target = &self.decoder.targets[column];
        let is_json = matches!(target.sql_type, SqlType::Json | SqlType::Jsonb);
        match self.scan.peek() {
            Some(b'"') if !is_json => {
                let start = self.scan.position() + 1;
                match self.scan.string()? {
                    Cow::Borrowed(text) => fields.set(column, start, start + text.len()),
                    Cow::Owned(text) if text.contains('\0') => {
                        refused.get_or_insert_with(|| no_zero(&target.name));
                    }
                    Cow::Owned(text) => scratch(fields, column, &text),
                }
            }
            Some(b'[') if matches!(target.sql_type, SqlType::Array(_)) => {
                let text = self.scan.value()?;
                match array_text(text)? {
                    Some(array) if array.contains('\0') => {
                        refused.get_or_insert_with(|| no_zero(&target.name));
                    }
                    Some(array) => scratch(fields, column, &array),
                    None => {
                        refused.get_or_insert_with(|| {
                            Error::unsupported("arrays of more than one dimension are not supported")
                                .context(format!("column {}", target.name))
                        });
                    }
                }
            }
            _ => {
                let text = self.scan.value()?;
                let end = self.scan.position();
                let whole = matches!(target.sql_type, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt | SqlType::Oid);
                match text {
                    "null" => fields.set_null(column),
                    _ if whole => fields.set(column, end - text.len(), end - text.len() + without_zeros(text).len()),
                    _ => fields.set(column, end - text.len(), end),
                }
            }
        }
        Ok(())
    }

    /// The `properties` object: the fields without a column, then those that it was given with, which count where both have a key.
    fn properties(&self, target: usize, rest: Rest, fields: &mut Fields<'a>) {
        let given = rest.given.clone().map(|given| &self.text[given]);
        match (rest.text.is_empty(), given) {
            (true, None) => {}
            (true, Some(inside)) => {
                let start = rest.given.map_or(0, |given| given.start);
                fields.set(target, start - 1, start + inside.len() + 1);
            }
            (false, inside) => {
                let from = fields.scratch().len();
                let text = fields.scratch();
                text.push('{');
                text.push_str(&rest.text);
                if let Some(inside) = inside.filter(|inside| !inside.trim_ascii().is_empty()) {
                    text.push(',');
                    text.push_str(inside);
                }
                text.push('}');
                fields.set_scratch(target, from);
            }
        }
    }
}

impl Rest {
    fn member(&mut self, key_text: &str) {
        if !self.text.is_empty() && !self.text.ends_with('{') {
            self.text.push(',');
        }
        self.text.push_str(key_text);
        self.text.push(':');
    }
}

fn scratch(fields: &mut Fields<'_>, column: usize, text: &str) {
    let from = fields.scratch().len();
    fields.scratch().push_str(text);
    fields.set_scratch(column, from);
}

/// A whole number as some clients write it, `3.0`, without its fraction; anything else unchanged.
fn without_zeros(number: &str) -> &str {
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|byte| byte == b'0') => whole,
        _ => number,
    }
}

/// A JSON array as PostgreSQL writes arrays; none for an array of arrays.
fn array_text(text: &str) -> Result<Option<String>> {
    let mut scan = Scan::new(text);
    let mut array = String::from("{");
    scan.peek();
    scan.step();
    while let Some(next) = scan.peek().filter(|next| *next != b']') {
        match next {
            b',' => {
                scan.step();
                array.push(',');
            }
            b'[' => return Ok(None),
            b'"' => quote(&scan.string()?, &mut array),
            b'{' => quote(scan.value()?, &mut array),
            _ => match scan.value()? {
                "null" => array.push_str("NULL"),
                other => array.push_str(other),
            },
        }
    }
    array.push('}');
    Ok(Some(array))
}

fn no_zero(column: &str) -> Error {
    Error::new(SqlState::UNTRANSLATABLE_CHARACTER, "unsupported Unicode escape sequence")
        .detail("\\u0000 cannot be converted to text.")
        .context(format!("column {column}"))
}

fn quote(text: &str, array: &mut String) {
    array.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            array.push('\\');
        }
        array.push(character);
    }
    array.push('"');
}

#[path = "json_messages.rs"]
mod messages;

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
