//! What is kept of alerts: instances, how far each alert has looked, history, and what is to be sent.
//!
//! *Place*: RocksDB's family [`Family::Alerts`], by `evaluate` and `outbox`. Everything but history is in memory too.
//!
//! *Invariants*: (1) the transitions of an evaluation, how far it has looked, and the messages that they cause are one batch: after a
//! crash all of it is there or none; (2) what is not there is evaluated again, and gives the same transitions and the same ids of
//! messages; (3) history and delivered messages are bounded, the oldest go.
//!
//! On disk, values as JSON, numbers in keys big-endian: `i` alert(4) key → [`Instance`]; `m` alert(4) → [`Progress`]; `h` alert(4)
//! number(8) → [`Entry`]; `o` channel(4) number(8) → [`Outgoing`] that waits; `d` number(8) → [`Outgoing`] that is done.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lifecycle::{Instance, Phase};
use super::notify::Message;
use crate::catalog::Oid;
use crate::clock::Micros;
use crate::config::limits::AlertLimits;
use crate::error::{Error, Result, SqlState};
use crate::state::{Batch, Family, State};

/// How far an alert has looked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// It was evaluated once: later evaluations look at every window since.
    pub begun: bool,
    /// Windows of partitions that were not there at the first evaluation count when they end after this, and the newest always.
    pub floor: Micros,
    /// Windows that end at or before this were looked at, by partition.
    pub partitions: BTreeMap<String, Micros>,
    /// The same of rows that do not tell their partition.
    pub all: Option<Micros>,
    /// When it was evaluated last, by the server's clock.
    pub evaluated_at: Option<Micros>,
    /// Evaluations so far.
    pub evaluations: u64,
    /// Very late rows and deletions that were looked at.
    pub very_late: u64,
    /// The same of deletions.
    pub deleted_lsn: u64,
}

/// A change of state, in the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The alert.
    pub alert: Oid,
    /// The columns that tell the instance from others.
    pub instance: Map<String, Value>,
    /// From where.
    pub from: Phase,
    /// To where.
    pub to: Phase,
    /// The end of the window, or the time of the evaluation.
    pub at: Micros,
    /// When it was written, by the server's clock.
    pub recorded_at: Micros,
    /// The start of the window.
    pub window: Option<Micros>,
    /// The row.
    pub values: Map<String, Value>,
    /// Why, where the row does not say.
    pub reason: Option<String>,
    /// Nobody was told, because the alert was silenced.
    pub silenced: bool,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// It waits for its turn or its next attempt.
    Pending,
    /// The receiver has it.
    Delivered,
    /// It was given up.
    Dead,
}

/// A message for one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outgoing {
    /// In the order in which they were made.
    pub number: u64,
    /// Where to.
    pub channel: Oid,
    /// What.
    pub message: Message,
    /// When it was made.
    pub created_at: Micros,
    /// Attempts so far.
    pub attempts: u32,
    /// When it is to be tried next.
    pub due_at: Micros,
    /// Where it stands.
    pub delivery: Delivery,
    /// When it was delivered or given up.
    pub done_at: Option<Micros>,
    /// Why the last attempt failed.
    pub failure: Option<String>,
}

/// One alert's part.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// How far it has looked.
    pub progress: Progress,
    /// By the JSON text of their keys.
    pub instances: BTreeMap<String, Instance>,
    /// The keys of instances of which somebody may have to be told without a new observation.
    open: BTreeSet<String>,
    /// Numbers of its history, oldest first.
    history: VecDeque<u64>,
}

impl Book {
    fn put(&mut self, key: String, instance: Instance) {
        match instance.is_open() {
            true => drop(self.open.insert(key.clone())),
            false => drop(self.open.remove(&key)),
        }
        self.instances.insert(key, instance);
    }
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    state: Arc<State>,
    limits: AlertLimits,
    books: Mutex<HashMap<Oid, Arc<Book>>>,
    waiting: Mutex<BTreeMap<(Oid, u64), Outgoing>>,
    done: Mutex<VecDeque<Outgoing>>,
    next: AtomicU64,
}

/// What one evaluation changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Instances with new states.
    pub instances: BTreeMap<String, Instance>,
    /// Instances that are forgotten: they were ok, and their rows have not come for long.
    pub forgotten: Vec<String>,
    /// Changes of state.
    pub history: Vec<Entry>,
    /// Messages, by channel.
    pub messages: Vec<(Oid, Message)>,
    /// How far it has looked now.
    pub progress: Option<Progress>,
}

impl Ledger {
    /// Reads what is there.
    pub fn open(state: Arc<State>, limits: AlertLimits) -> Result<Ledger> {
        let mut books: HashMap<Oid, Book> = HashMap::new();
        let mut waiting = BTreeMap::new();
        let mut done = VecDeque::new();
        let mut last = 0;
        state.scan(Family::Alerts, &[], &mut |key, value| {
            let (kind, rest) = key.split_first().ok_or_else(damaged)?;
            match kind {
                b'i' => {
                    let (oid, text) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
                    let text = std::str::from_utf8(text).map_err(|_| damaged())?.to_owned();
                    books.entry(Oid::from_be_bytes(*oid)).or_default().put(text, read(value)?);
                }
                b'm' => books.entry(oid_of(rest)?).or_default().progress = read(value)?,
                b'h' => {
                    let number = number_of(rest)?;
                    last = last.max(number);
                    books.entry(oid_of(rest)?).or_default().history.push_back(number);
                }
                b'o' => {
                    let outgoing: Outgoing = read(value)?;
                    last = last.max(outgoing.number);
                    waiting.insert((outgoing.channel, outgoing.number), outgoing);
                }
                b'd' => {
                    let outgoing: Outgoing = read(value)?;
                    last = last.max(outgoing.number);
                    done.push_back(outgoing);
                }
                _ => return Err(damaged()),
            }
            Ok(())
        })?;
        Ok(Ledger {
            state,
            limits,
            books: Mutex::new(books.into_iter().map(|(alert, book)| (alert, Arc::new(book))).collect()),
            waiting: Mutex::new(waiting),
            done: Mutex::new(done),
            next: AtomicU64::new(last + 1),
        })
    }

    /// An alert's part as it is now.
    pub fn book(&self, alert: Oid) -> Arc<Book> {
        self.books.lock().get(&alert).cloned().unwrap_or_default()
    }

    /// The instances of an alert of which somebody may have to be told now.
    pub fn open_instances(&self, alert: Oid) -> Vec<(String, Instance)> {
        let books = self.books.lock();
        let Some(book) = books.get(&alert) else { return Vec::new() };
        book.open.iter().filter_map(|key| Some((key.clone(), book.instances.get(key)?.clone()))).collect()
    }

    /// When an alert was evaluated last.
    pub fn evaluated_at(&self, alert: Oid) -> Option<Micros> {
        self.books.lock().get(&alert)?.progress.evaluated_at
    }

    /// Alerts of which something is kept.
    pub fn alerts(&self) -> Vec<Oid> {
        self.books.lock().keys().copied().collect()
    }

    /// Writes an evaluation, whole and durably where somebody is to be told. A channel whose queue is full gets no more: what is too
    /// much is recorded as given up.
    ///
    /// One writer of an alert at a time; others look at it meanwhile, so what takes time happens without the locks. Evaluations at one time may
    /// fill a queue beyond its length, each by what it brings.
    pub fn write(&self, alert: Oid, changes: Changes, now: Micros) -> Result<()> {
        let mut batch = Batch::default();
        let (new, lost) = self.outgoing(changes.messages, now);
        for outgoing in &new {
            batch.put(Family::Alerts, waiting_key(outgoing.channel, outgoing.number), json(outgoing)?);
        }
        for outgoing in &lost {
            batch.put(Family::Alerts, done_key(outgoing.number), json(outgoing)?);
        }
        for key in &changes.forgotten {
            batch.delete(Family::Alerts, instance_key(alert, key));
        }
        for (key, instance) in &changes.instances {
            batch.put(Family::Alerts, instance_key(alert, key), json(instance)?);
        }
        if let Some(progress) = &changes.progress {
            batch.put(Family::Alerts, progress_key(alert), json(progress)?);
        }
        let mut numbers = Vec::with_capacity(changes.history.len());
        for entry in &changes.history {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            batch.put(Family::Alerts, history_key(alert, number), json(entry)?);
            numbers.push(number);
        }
        let known = self.book(alert);
        let old = (known.history.len() + numbers.len()).saturating_sub(self.limits.history_max).min(known.history.len());
        for number in known.history.iter().take(old) {
            batch.delete(Family::Alerts, history_key(alert, *number));
        }
        // Otherwise what is written to would be a copy.
        drop(known);
        let must_last = !new.is_empty() || !numbers.is_empty();
        self.state.write(batch)?;
        {
            let mut books = self.books.lock();
            // Copied where somebody looks at it meanwhile.
            let book = Arc::make_mut(books.entry(alert).or_default());
            book.history.drain(..old);
            book.history.extend(numbers);
            for key in &changes.forgotten {
                book.instances.remove(key);
            }
            for (key, instance) in changes.instances {
                book.put(key, instance);
            }
            if let Some(progress) = changes.progress {
                book.progress = progress;
            }
        }
        self.waiting.lock().extend(new.into_iter().map(|outgoing| ((outgoing.channel, outgoing.number), outgoing)));
        self.remember(Batch::default(), lost)?;
        if must_last {
            self.state.sync()?;
        }
        Ok(())
    }

    /// Messages for channels, and those for which their queue has no place.
    fn outgoing(&self, messages: Vec<(Oid, Message)>, now: Micros) -> (Vec<Outgoing>, Vec<Outgoing>) {
        let (mut new, mut lost) = (Vec::new(), Vec::new());
        let mut queued: HashMap<Oid, usize> = HashMap::new();
        for (channel, message) in messages {
            let mut outgoing = Outgoing {
                number: self.next.fetch_add(1, Ordering::Relaxed),
                channel,
                message,
                created_at: now,
                attempts: 0,
                due_at: now,
                delivery: Delivery::Pending,
                done_at: None,
                failure: None,
            };
            let in_queue = || self.waiting.lock().range((channel, 0)..=(channel, u64::MAX)).count();
            let queued = queued.entry(channel).or_insert_with(in_queue);
            if *queued < self.limits.outbox_max {
                *queued += 1;
                new.push(outgoing);
            } else {
                outgoing.delivery = Delivery::Dead;
                outgoing.done_at = Some(now);
                outgoing.failure = Some("too many messages wait for the channel".to_owned());
                lost.push(outgoing);
            }
        }
        (new, lost)
    }

    /// Forgets an alert. Its messages go on.
    pub fn forget(&self, alert: Oid) -> Result<()> {
        let mut books = self.books.lock();
        for kind in [b'i', b'm', b'h'] {
            self.state.delete_prefix(Family::Alerts, &prefix(kind, alert))?;
        }
        books.remove(&alert);
        Ok(())
    }

    /// The next message of each channel that is not busy. What is about an instance waits for what was said of it before.
    pub fn due(&self, now: Micros, busy: &dyn Fn(Oid) -> bool) -> Vec<Outgoing> {
        let waiting = self.waiting.lock();
        let mut due = Vec::new();
        let mut next = waiting.keys().next().copied();
        while let Some((channel, _)) = next {
            let mut held = HashSet::new();
            let about = |outgoing: &Outgoing| format!("{} {:?}", outgoing.message.alert, outgoing.message.instance);
            for outgoing in waiting.range((channel, 0)..=(channel, u64::MAX)).map(|(_, outgoing)| outgoing) {
                if busy(channel) {
                    break;
                }
                if outgoing.due_at > now {
                    held.insert(about(outgoing));
                } else if held.is_empty() || !held.contains(&about(outgoing)) {
                    due.push(outgoing.clone());
                    break;
                }
            }
            next = waiting.range((Excluded((channel, u64::MAX)), Unbounded)).next().map(|(key, _)| *key);
        }
        due
    }

    /// Writes what became of an attempt.
    pub fn attempted(&self, outgoing: &Outgoing) -> Result<()> {
        let mut batch = Batch::default();
        let key = (outgoing.channel, outgoing.number);
        if outgoing.delivery == Delivery::Pending {
            batch.put(Family::Alerts, waiting_key(key.0, key.1), json(outgoing)?);
            self.state.write(batch)?;
            self.waiting.lock().insert(key, outgoing.clone());
            return Ok(());
        }
        batch.delete(Family::Alerts, waiting_key(key.0, key.1));
        self.finished(batch, outgoing)?;
        self.waiting.lock().remove(&key);
        Ok(())
    }

    /// Records a message that was sent beside the queue.
    pub fn sent(&self, mut outgoing: Outgoing) -> Result<()> {
        outgoing.number = self.next.fetch_add(1, Ordering::Relaxed);
        self.finished(Batch::default(), &outgoing)
    }

    fn finished(&self, mut batch: Batch, outgoing: &Outgoing) -> Result<()> {
        batch.put(Family::Alerts, done_key(outgoing.number), json(outgoing)?);
        self.remember(batch, vec![outgoing.clone()])
    }

    /// Keeps messages that are done with, whose rows are in `batch` or written, in the place of the oldest.
    fn remember(&self, mut batch: Batch, outgoing: Vec<Outgoing>) -> Result<()> {
        let mut done = self.done.lock();
        let all = done.len() + outgoing.len();
        let old = all.saturating_sub(self.limits.delivered_max);
        for gone in done.iter().chain(&outgoing).take(old) {
            batch.delete(Family::Alerts, done_key(gone.number));
        }
        self.state.write(batch)?;
        done.extend(outgoing);
        done.drain(..old);
        Ok(())
    }

    /// All messages, those that wait first.
    pub fn messages(&self) -> Vec<Outgoing> {
        let waiting = self.waiting.lock();
        let done = self.done.lock();
        waiting.values().chain(done.iter()).cloned().collect()
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    /// The history of all alerts, oldest first in each.
    pub fn history(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.state.scan(Family::Alerts, b"h", &mut |_, value| {
            entries.push(read(value)?);
            Ok(())
        })?;
        Ok(entries)
    }
}

fn prefix(kind: u8, oid: Oid) -> Vec<u8> {
    [&[kind][..], &oid.to_be_bytes()].concat()
}

fn instance_key(alert: Oid, key: &str) -> Vec<u8> {
    [&prefix(b'i', alert)[..], key.as_bytes()].concat()
}

fn progress_key(alert: Oid) -> Vec<u8> {
    prefix(b'm', alert)
}

fn history_key(alert: Oid, number: u64) -> Vec<u8> {
    [&prefix(b'h', alert)[..], &number.to_be_bytes()].concat()
}

fn waiting_key(channel: Oid, number: u64) -> Vec<u8> {
    [&prefix(b'o', channel)[..], &number.to_be_bytes()].concat()
}

fn done_key(number: u64) -> Vec<u8> {
    [&b"d"[..], &number.to_be_bytes()].concat()
}

fn oid_of(rest: &[u8]) -> Result<Oid> {
    rest.first_chunk::<4>().map(|bytes| Oid::from_be_bytes(*bytes)).ok_or_else(damaged)
}

fn number_of(rest: &[u8]) -> Result<u64> {
    rest.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(damaged)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal(error.to_string()))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|_| damaged())
}

fn damaged() -> Error {
    Error::new(SqlState::DATA_CORRUPTED, "the state of an alert cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::lifecycle::Kind;

    fn message(id: &str) -> Message {
        Message {
            id: id.to_owned(),
            kind: Kind::Firing,
            alert: "a".to_owned(),
            instance: Map::new(),
            at: 0,
            window: None,
            values: Map::new(),
            told: None,
            reason: None,
        }
    }

    #[test]
    fn what_is_written_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let limits = AlertLimits { outbox_max: 2, history_max: 2, delivered_max: 1, ..AlertLimits::default() };
        let open = || Ledger::open(Arc::new(State::open(dir.path(), 1 << 20).unwrap()), limits.clone()).unwrap();
        let ledger = open();
        let entry = |at| Entry {
            alert: 5,
            instance: Map::new(),
            from: Phase::Ok,
            to: Phase::Firing,
            at,
            recorded_at: at,
            window: None,
            values: Map::new(),
            reason: None,
            silenced: false,
        };
        let changes = Changes {
            instances: [("{}".to_owned(), Instance { phase: Phase::Firing, ..Instance::default() })].into(),
            history: vec![entry(1), entry(2)],
            messages: vec![(9, message("a")), (9, message("b")), (9, message("c"))],
            progress: Some(Progress { begun: true, ..Progress::default() }),
            ..Changes::default()
        };
        ledger.write(5, changes, 10).unwrap();
        ledger.write(5, Changes { history: vec![entry(3)], ..Changes::default() }, 11).unwrap();
        let first = ledger.due(10, &|_| false).pop().unwrap();
        assert_eq!(first.message.id, "a");
        ledger.attempted(&Outgoing { delivery: Delivery::Delivered, done_at: Some(11), ..first }).unwrap();
        drop(ledger);
        let ledger = open();
        assert_eq!(ledger.book(5).instances["{}"].phase, Phase::Firing);
        assert!(ledger.book(5).progress.begun);
        assert_eq!(ledger.history().unwrap().iter().map(|entry| entry.at).collect::<Vec<_>>(), [2, 3]);
        let shown: Vec<_> = ledger.messages().iter().map(|outgoing| (outgoing.message.id.clone(), outgoing.delivery)).collect();
        assert_eq!(shown, [("b".to_owned(), Delivery::Pending), ("a".to_owned(), Delivery::Delivered)]);
        assert!(ledger.due(9, &|_| false).is_empty() && ledger.due(10, &|channel| channel == 9).is_empty());
        ledger.forget(5).unwrap();
        assert!(ledger.history().unwrap().is_empty() && ledger.alerts().is_empty());
    }
}
