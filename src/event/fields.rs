//! The fields of some rows, as spans.

/// Where in a field's text escapes were undone, it stands in the scratch text: this bit of the span's start says so.
const IN_SCRATCH: u32 = 1 << 31;

/// Length of a NULL.
const NULL: u32 = u32::MAX;

/// Length of a field that was not given: a NULL unless its column has a default.
const ABSENT: u32 = u32::MAX - 1;

/// Bytes of a chunk, and of its scratch: positions are 31 bits.
pub(crate) const CHUNK_BYTES_MAX: usize = (IN_SCRATCH - 1) as usize;

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    length: u32,
}

/// The fields of rows that all have the same number of columns, row by row.
#[derive(Debug)]
pub struct Fields<'a> {
    text: &'a str,
    scratch: String,
    spans: Vec<Span>,
    columns: usize,
}

impl<'a> Fields<'a> {
    /// No rows yet. `text` is at most [`CHUNK_BYTES_MAX`] bytes.
    pub(crate) fn new(text: &'a str, columns: usize) -> Self {
        Fields { text, scratch: String::new(), spans: Vec::new(), columns: columns.max(1) }
    }

    /// Removes all rows, keeping the memory.
    pub(crate) fn clear(&mut self) {
        self.scratch.clear();
        self.spans.clear();
    }

    /// Whole rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.spans.len() / self.columns
    }

    /// Columns of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Fields of the unfinished row.
    pub(crate) fn pending(&self) -> usize {
        self.spans.len() % self.columns
    }

    /// Takes away the fields of the unfinished row.
    pub(crate) fn drop_pending(&mut self) {
        self.spans.truncate(self.rows() * self.columns);
    }

    /// Takes away the last row.
    pub(crate) fn drop_last_row(&mut self) {
        self.spans.truncate(self.spans.len().saturating_sub(self.columns));
    }

    /// Begins a row none of whose fields is given yet.
    pub(crate) fn open_row(&mut self) {
        self.spans.extend(std::iter::repeat_n(Span { start: 0, length: ABSENT }, self.columns));
    }

    /// Gives a field of the last row.
    #[inline]
    pub(crate) fn set(&mut self, column: usize, start: usize, end: usize) {
        self.give(column, Span { start: start as u32, length: (end - start) as u32 });
    }

    /// Gives a field of the last row, whose text has been appended to the scratch from `start` on.
    pub(crate) fn set_scratch(&mut self, column: usize, start: usize) {
        self.give(column, Span { start: start as u32 | IN_SCRATCH, length: (self.scratch.len() - start) as u32 });
    }

    /// Makes a field of the last row NULL.
    pub(crate) fn set_null(&mut self, column: usize) {
        self.give(column, Span { start: 0, length: NULL });
    }

    fn give(&mut self, column: usize, span: Span) {
        let first = self.spans.len() - self.columns;
        self.spans[first + column] = span;
    }

    /// Takes a field's value away.
    pub(crate) fn clear_field(&mut self, row: usize, column: usize) {
        self.spans[row * self.columns + column] = Span { start: 0, length: NULL };
    }

    /// Whether a field was given, be it as NULL.
    pub(crate) fn is_given(&self, row: usize, column: usize) -> bool {
        self.spans[row * self.columns + column].length != ABSENT
    }

    #[inline]
    pub(crate) fn push(&mut self, start: usize, end: usize) {
        self.spans.push(Span { start: start as u32, length: (end - start) as u32 });
    }

    #[inline]
    pub(crate) fn push_null(&mut self) {
        self.spans.push(Span { start: 0, length: NULL });
    }

    /// Adds a field that was not given.
    pub(crate) fn push_absent(&mut self) {
        self.spans.push(Span { start: 0, length: ABSENT });
    }

    /// Adds a field whose text has been appended to the scratch from `start` on.
    pub(crate) fn push_scratch(&mut self, start: usize) {
        self.spans.push(Span { start: start as u32 | IN_SCRATCH, length: (self.scratch.len() - start) as u32 });
    }

    pub(crate) fn scratch(&mut self) -> &mut String {
        &mut self.scratch
    }

    /// The text of a field, none for NULL.
    #[inline]
    pub fn get(&self, row: usize, column: usize) -> Option<&str> {
        let span = self.spans[row * self.columns + column];
        if span.length >= ABSENT {
            return None;
        }
        let start = (span.start & !IN_SCRATCH) as usize;
        let text = if span.start & IN_SCRATCH == 0 { self.text } else { &self.scratch };
        Some(&text[start..start + span.length as usize])
    }

    /// The values of one column.
    pub fn column(&self, column: usize) -> Cells<'_> {
        Cells { fields: self, column }
    }
}

/// One column of [`Fields`].
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    fields: &'a Fields<'a>,
    column: usize,
}

impl<'a> Cells<'a> {
    /// Rows.
    #[inline]
    pub fn len(&self) -> usize {
        self.fields.rows()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text in a row, none for NULL.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&'a str> {
        self.fields.get(row, self.column)
    }
}
