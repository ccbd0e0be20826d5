//! The arithmetic of event-time windows.
//!
//! *Place*: the window functions of queries and the state of views use the same.

use crate::clock::Micros;

/// Start of the window that `time` falls in: windows begin at `offset_us` past 1970-01-01 and every `size_us` from there. None when it
/// is out of range.
pub fn start_of(time: Micros, size_us: Micros, offset_us: Micros) -> Option<Micros> {
    let past = time.checked_sub(offset_us)?.rem_euclid(size_us);
    time.checked_sub(past)
}

/// Whether a row belongs to the session whose last row before it is at `last`. Exactly `gap_us` apart it does, as in Flink: its own
/// window begins where the session's ends.
pub fn joins(last: Micros, time: Micros, gap_us: Micros) -> bool {
    time.saturating_sub(last) <= gap_us
}

#[cfg(test)]
mod tests {
    use super::{joins, start_of};

    #[test]
    fn windows_begin_at_their_offset() {
        assert_eq!(start_of(17, 5, 0), Some(15));
        assert_eq!(start_of(-1, 5, 0), Some(-5));
        assert_eq!(start_of(17, 5, 3), Some(13));
        assert_eq!(start_of(i64::MIN, 5, 0), None);
    }

    #[test]
    fn a_gap_is_included() {
        assert!(joins(10, 40, 30));
        assert!(!joins(10, 41, 30));
    }
}
