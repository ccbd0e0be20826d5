//! A commerce event as a client sends it: a line of COPY's csv, a row of a literal INSERT, or a line of JSON.
//!
//! *Place*: filled in by `bench::chunk` and `demo::traffic`.
//!
//! The event time comes first and has a fixed width, so that a prepared chunk is moved in time without writing it again.

use crate::clock::Micros;
use crate::types::text::calendar::{DAY_US, civil_from_days};

/// The columns that are sent, in this order.
pub const COLUMNS: &str = "event_time, event_id, event_type, user_id, session_id, store_id, device_type, country, referrer, \
    utm_source, utm_medium, utm_campaign, page, product_id, product_category, order_id, quantity, revenue, properties";

/// Characters of an event time.
pub const TIME_CHARS: usize = "2026-01-01 00:00:00.000000+00".len();

/// What it is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line of csv.
    Csv,
    /// A parenthesized row of VALUES.
    Literal,
    /// A line of JSON.
    Json,
}

/// An event. Empty texts and zeros are NULL, but for `user`, `session` and `store`. No text holds a quote other than in
/// `properties`, a JSON object.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are the commerce schema's columns")]
pub struct Event {
    pub time: Micros,
    pub id: u128,
    pub kind: &'static str,
    pub user: u32,
    pub session: u64,
    pub store: u32,
    pub device: &'static str,
    pub country: &'static str,
    pub referrer: &'static str,
    pub source: &'static str,
    pub medium: &'static str,
    pub campaign: &'static str,
    pub page: &'static str,
    pub product: u32,
    pub category: &'static str,
    pub order: u64,
    pub quantity: u32,
    pub cents: u32,
    pub properties: &'static str,
}

impl Event {
    /// Appends it and a line end, or for VALUES whatever separates it from the next. Returns where the event time begins.
    pub fn write(&self, form: Form, out: &mut Vec<u8>) -> usize {
        let mut row = Row { form, out, first: true, names: COLUMNS.split(", ") };
        row.begin();
        let quote = match form {
            Form::Csv => 0,
            Form::Literal => 1,
            Form::Json => r#""event_time":""#.len(),
        };
        let at = row.out.len() + quote;
        let mut time = [0; TIME_CHARS];
        write_time(self.time, &mut time);
        row.text(&time);
        row.value(true, |out| write_uuid(self.id, out));
        row.text(self.kind.as_bytes());
        row.name("u", u64::from(self.user));
        row.name("s", self.session);
        row.name("store_", u64::from(self.store));
        for text in [self.device, self.country, self.referrer, self.source, self.medium, self.campaign, self.page] {
            row.text(text.as_bytes());
        }
        row.optional_name("p", u64::from(self.product));
        row.text(self.category.as_bytes());
        row.optional_name("o", self.order);
        row.number(self.quantity != 0, |out| write_number(u64::from(self.quantity), out));
        row.number(self.cents != 0, |out| {
            write_number(u64::from(self.cents / 100), out);
            out.extend_from_slice(&[b'.', b'0' + (self.cents / 10 % 10) as u8, b'0' + (self.cents % 10) as u8]);
        });
        row.json(self.properties);
        row.end();
        at
    }
}

struct Row<'a> {
    form: Form,
    out: &'a mut Vec<u8>,
    first: bool,
    names: std::str::Split<'static, &'static str>,
}

impl Row<'_> {
    fn begin(&mut self) {
        match self.form {
            Form::Csv => {}
            Form::Literal => self.out.push(b'('),
            Form::Json => self.out.push(b'{'),
        }
    }

    fn end(&mut self) {
        self.out.extend_from_slice(match self.form {
            Form::Csv => b"\n".as_slice(),
            Form::Literal => b"),",
            Form::Json => b"}\n",
        });
    }

    fn next(&mut self, present: bool) {
        let name = self.names.next().unwrap_or_default();
        // In JSON what is NULL is not there.
        if self.form == Form::Json && !present {
            return;
        }
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        if self.form == Form::Json {
            self.out.push(b'"');
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
        }
    }

    /// A value, in quotes where the form wants them; NULL when it is not `present`.
    fn value(&mut self, present: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let quote: &[u8] = match self.form {
            Form::Csv => b"",
            Form::Literal => b"'",
            Form::Json => b"\"",
        };
        self.plain(present, |out| {
            out.extend_from_slice(quote);
            write(out);
            out.extend_from_slice(quote);
        });
    }

    fn number(&mut self, present: bool, write: impl FnOnce(&mut Vec<u8>)) {
        self.plain(present, write);
    }

    fn plain(&mut self, present: bool, write: impl FnOnce(&mut Vec<u8>)) {
        self.next(present);
        if present {
            write(self.out);
        } else if self.form == Form::Literal {
            self.out.extend_from_slice(b"NULL");
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.value(!text.is_empty(), |out| out.extend_from_slice(text));
    }

    fn name(&mut self, prefix: &str, number: u64) {
        self.value(true, |out| {
            out.extend_from_slice(prefix.as_bytes());
            write_number(number, out);
        });
    }

    fn optional_name(&mut self, prefix: &str, number: u64) {
        if number == 0 { self.text(b"") } else { self.name(prefix, number) }
    }

    fn json(&mut self, text: &str) {
        if self.form == Form::Json {
            return self.plain(!text.is_empty(), |out| out.extend_from_slice(text.as_bytes()));
        }
        let csv = self.form == Form::Csv;
        self.value(!text.is_empty(), |out| {
            if csv {
                out.push(b'"');
            }
            for byte in text.bytes() {
                if csv && byte == b'"' {
                    out.push(b'"');
                }
                out.push(byte);
            }
            if csv {
                out.push(b'"');
            }
        });
    }
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut from = digits.len();
    let mut rest = number;
    loop {
        from -= 1;
        digits[from] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[from..]);
}

fn write_uuid(id: u128, out: &mut Vec<u8>) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    uuid::Uuid::from_u128(id).hyphenated().encode_lower(&mut text);
    out.extend_from_slice(&text);
}

/// Writes a time in UTC as [`TIME_CHARS`] characters. Years 0 to 9999.
pub fn write_time(time: Micros, out: &mut [u8]) {
    let (days, rest) = (time.div_euclid(DAY_US), time.rem_euclid(DAY_US));
    let (year, month, day) = civil_from_days(days);
    let parts = [
        (year, 4, b'-'),
        (i64::from(month), 2, b'-'),
        (i64::from(day), 2, b' '),
        (rest / 3_600_000_000, 2, b':'),
        (rest / 60_000_000 % 60, 2, b':'),
        (rest / 1_000_000 % 60, 2, b'.'),
        (rest % 1_000_000, 6, b'+'),
    ];
    let mut at = 0;
    for (number, width, then) in parts {
        let mut rest = number;
        for digit in out[at..at + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out[at + width] = then;
        at += width + 1;
    }
    out[at..at + 2].copy_from_slice(b"00");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_say_the_same() {
        let event = Event {
            time: 1_767_225_600_000_001,
            id: 1,
            kind: "purchase",
            user: 7,
            store: 123,
            cents: 1_205,
            quantity: 2,
            properties: r#"{"a": "b"}"#,
            ..Event::default()
        };
        let (mut csv, mut literal, mut json) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(event.write(Form::Json, &mut json), 15);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            "{\"event_time\":\"2026-01-01 00:00:00.000001+00\",\"event_id\":\"00000000-0000-0000-0000-000000000001\",\
             \"event_type\":\"purchase\",\"user_id\":\"u7\",\"session_id\":\"s0\",\"store_id\":\"store_123\",\"quantity\":2,\
             \"revenue\":12.05,\"properties\":{\"a\": \"b\"}}\n"
        );
        assert_eq!(event.write(Form::Csv, &mut csv), 0);
        assert_eq!(event.write(Form::Literal, &mut literal), 2);
        assert_eq!(
            String::from_utf8(csv).unwrap(),
            "2026-01-01 00:00:00.000001+00,00000000-0000-0000-0000-000000000001,purchase,u7,s0,store_123,,,,,,,,,,,2,12.05,\
             \"{\"\"a\"\": \"\"b\"\"}\"\n"
        );
        assert_eq!(
            String::from_utf8(literal).unwrap(),
            "('2026-01-01 00:00:00.000001+00','00000000-0000-0000-0000-000000000001','purchase','u7','s0','store_123',\
             NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,2,12.05,'{\"a\": \"b\"}'),"
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (micros, text) in [
            (0, "1970-01-01 00:00:00.000000+00"),
            (951_782_399_999_999, "2000-02-28 23:59:59.999999+00"),
            (951_782_400_000_000, "2000-02-29 00:00:00.000000+00"),
            (-1, "1969-12-31 23:59:59.999999+00"),
        ] {
            let mut out = [0; TIME_CHARS];
            write_time(micros, &mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), text);
        }
    }
}
