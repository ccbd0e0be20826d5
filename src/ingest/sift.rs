//! Rows that keep a table's rules, and those that do not, each with its reason: for sources whose events stand alone.
//!
//! *Invariants*: (1) rows that are kept stay in order; (2) the work grows with the rows as n log n, however many are refused: a batch
//! that is refused is halved.

use arrow::record_batch::RecordBatch;

use super::defaults::Client;
use super::pipeline::{Pipeline, Refusal};
use crate::error::Error;

/// A batch, sifted.
#[derive(Debug, Default)]
pub struct Sifted {
    /// Completed rows: the table's schema.
    pub rows: Vec<RecordBatch>,
    /// Rows of the source that broke a rule, in order.
    pub refused: Vec<(usize, Error)>,
}

impl Pipeline {
    /// As [`Pipeline::complete`], leaving out the rows that break a rule. Ends early when more than `refused_max` do.
    pub fn sift(&self, source: &RecordBatch, client: &Client, refused_max: usize) -> Sifted {
        let mut sifted = Sifted::default();
        self.sift_part((source, client, refused_max), 0, source.num_rows(), &mut sifted);
        sifted
    }

    fn sift_part(&self, (source, client, refused_max): (&RecordBatch, &Client, usize), start: usize, rows: usize, sifted: &mut Sifted) {
        if rows == 0 || sifted.refused.len() > refused_max {
            return;
        }
        match self.complete_rows_of(source.slice(start, rows), client) {
            Ok(batch) => sifted.rows.push(batch),
            Err(Refusal { error, .. }) if rows == 1 => sifted.refused.push((start, error)),
            // The rows before it break no rule.
            Err(Refusal { row: Some(row), error }) if row < rows => {
                self.sift_part((source, client, refused_max), start, row, sifted);
                sifted.refused.push((start + row, error));
                let (next, left) = (start + row + 1, rows - row - 1);
                self.sift_part((source, client, refused_max), next, left / 2, sifted);
                self.sift_part((source, client, refused_max), next + left / 2, left - left / 2, sifted);
            }
            Err(_) => {
                self.sift_part((source, client, refused_max), start, rows / 2, sifted);
                self.sift_part((source, client, refused_max), start + rows / 2, rows - rows / 2, sifted);
            }
        }
    }
}
