//! Messages of which each is one event, as those of a topic: they stand in one text, so that a thousand cost one call.
//!
//! *Place*: a part of [`super`], called by `ingest::events` for sources.
//!
//! *Invariants*: (1) a message ends where it ends: no event goes on in the next one, and a message holds one event; (2) what is not JSON is
//! refused alone.

use std::ops::Range;

use super::{CHUNK_BYTES_MAX, Events, Fields, Form, Found, JsonDecoder, JsonRows, Scan, Stop};
use crate::error::{Error, Result, SqlState};

impl JsonDecoder {
    /// Decodes messages, each a part of `text`. A refused event's position is its message's. 54000 when the text is too long.
    pub fn decode_messages(&self, text: &str, messages: &[Range<usize>]) -> Result<JsonRows> {
        if text.len() > CHUNK_BYTES_MAX {
            return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "the messages are too long"));
        }
        // The second time with a look at each value before a column takes it: some value does not fit its column.
        for careful in [false, true] {
            match self.run(text, Some(messages), Form { careful, lines: false }, usize::MAX) {
                Ok(Some(rows)) => return Ok(rows),
                Ok(None) => {}
                Err(Stop::Malformed(error) | Stop::Other(error)) => return Err(error),
            }
        }
        Err(Error::internal("a value fits its column and does not"))
    }
}

impl<'a> Events<'a, '_> {
    /// Reads the next message; false when there is none.
    pub(super) fn message(&mut self, fields: &mut Fields<'a>, found: &mut Found) -> bool {
        let position = self.position;
        let Some(span) = self.messages.get(position).cloned() else { return false };
        self.position += 1;
        let text = self.text;
        self.scan = Scan::at(text.get(..span.end).unwrap_or(text), span.start);
        let is_row = self.scan.peek() == Some(b'{');
        if is_row {
            fields.open_row();
        }
        let outcome = match self.scan.peek() {
            None => Err(Error::new(SqlState::INVALID_TEXT_REPRESENTATION, "the message is empty")),
            Some(b'{') => self.object(fields),
            Some(_) => self.scan.value().map(|_| Some(Error::new(SqlState::INVALID_PARAMETER_VALUE, "a message must be a JSON object"))),
        };
        let outcome = outcome.and_then(|refused| match self.scan.peek() {
            Some(_) => Err(self.scan.unexpected("Expected end of message")),
            None => Ok(refused),
        });
        let refused = outcome.unwrap_or_else(|error| {
            let before = text.get(span.start..self.scan.position().min(span.end)).unwrap_or_default();
            Some(error.context(format!("JSON data, character {}", before.chars().count() + 1)))
        });
        found.place(fields, is_row, (position, span), refused);
        true
    }
}
