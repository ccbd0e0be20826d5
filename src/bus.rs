//! LISTEN and NOTIFY: short texts from one session to all that listen.
//!
//! *Place*: `session` publishes what a committed transaction has said and gives each connection its [`Listener`]; `alert` publishes
//! here too. Nothing of it is stored.
//!
//! *Invariants*: (1) what is published is published whole, in the order of the commits: who publishes holds the [`Turn`]; (2) a
//! session's queue is bounded (`limits.wire.notify_bytes_max`): where it is full, who wants to notify fails, as in PostgreSQL, and
//! nobody is told half of anything; (3) texts are shared by the queues that hold them.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{MutexGuard, Notify};

use crate::error::{Error, Result, SqlState};

/// Bytes of a channel's name at most, and one (PostgreSQL's NAMEDATALEN).
const CHANNEL_BYTES_END: usize = 64;

/// Bytes of a payload at most, and one, as in PostgreSQL.
pub const PAYLOAD_BYTES_END: usize = 8_000;

/// Memory of a queued text beside its bytes.
const OVERHEAD_BYTES: usize = 64;

/// What a listener is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The channel.
    pub channel: String,
    /// The text, perhaps empty.
    pub payload: String,
}

impl Message {
    /// A message. 22023 where PostgreSQL says so: no channel, or too long a one, or too long a payload.
    pub fn new(channel: &str, payload: &str) -> Result<Message> {
        let invalid = |message: &str| Err(Error::new(SqlState::INVALID_PARAMETER_VALUE, message));
        match (channel.len(), payload.len()) {
            (0, _) => invalid("channel name cannot be empty"),
            (CHANNEL_BYTES_END.., _) => invalid("channel name too long"),
            (_, PAYLOAD_BYTES_END..) => invalid("payload string too long"),
            _ => Ok(Message { channel: channel.to_owned(), payload: payload.to_owned() }),
        }
    }

    fn bytes(&self) -> usize {
        self.channel.len() + self.payload.len() + OVERHEAD_BYTES
    }
}

/// A message with its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// pg_backend_pid() of the sender; 0 for the server itself.
    pub sender: i32,
    /// What it said.
    pub message: Message,
}

/// What an open transaction is going to say: each text once, in order.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    messages: Vec<Arc<Message>>,
    known: HashSet<Arc<Message>>,
    bytes: usize,
}

impl Pending {
    /// Adds a message, unless the transaction has said the same already. 54000 when it has said too much.
    pub fn add(&mut self, message: Message, bytes_max: usize) -> Result<()> {
        if self.known.contains(&message) {
            return Ok(());
        }
        if self.bytes + message.bytes() > bytes_max {
            return Err(full());
        }
        self.bytes += message.bytes();
        let message = Arc::new(message);
        self.known.insert(Arc::clone(&message));
        self.messages.push(message);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Forgets all but the first so many.
    pub fn truncate(&mut self, count: usize) {
        for gone in self.messages.drain(count.min(self.messages.len())..) {
            self.bytes -= gone.bytes();
            self.known.remove(&gone);
        }
    }
}

/// The channels and who listens to them.
#[derive(Debug)]
pub struct Bus {
    channels: Mutex<HashMap<String, Vec<Arc<Mailbox>>>>,
    turn: tokio::sync::Mutex<()>,
    /// Bytes of one session's queue.
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Mailbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Arc<Notification>>,
    bytes: usize,
}

impl Bus {
    /// A bus whose listeners hold at most so many bytes each.
    pub fn new(bytes_max: usize) -> Arc<Bus> {
        Arc::new(Bus { channels: Mutex::default(), turn: tokio::sync::Mutex::new(()), bytes_max })
    }

    /// Bytes that one session's queue, or one transaction, can hold.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// A session's ear.
    pub fn listener(self: &Arc<Bus>) -> Listener {
        Listener { bus: Arc::clone(self), channels: BTreeSet::new(), mailbox: Arc::default() }
    }

    /// Waits until nobody else publishes.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { bus: self, _held: self.turn.lock().await }
    }
}

/// The right to publish. Whoever commits something with its messages holds it over the commit.
#[derive(Debug)]
pub struct Turn<'a> {
    bus: &'a Bus,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// 54000 when a listener's queue has no room for its part.
    pub fn admit(&self, pending: &Pending) -> Result<()> {
        let channels = self.bus.channels.lock();
        let mut needed: HashMap<*const Mailbox, (usize, &Arc<Mailbox>)> = HashMap::new();
        for message in &pending.messages {
            for mailbox in channels.get(&message.channel).into_iter().flatten() {
                needed.entry(Arc::as_ptr(mailbox)).or_insert((0, mailbox)).0 += message.bytes();
            }
        }
        let overflows = needed.values().any(|(bytes, mailbox)| mailbox.waiting.lock().bytes + bytes > self.bus.bytes_max);
        if overflows { Err(full()) } else { Ok(()) }
    }

    /// Tells the listeners what was [admitted](Turn::admit).
    pub fn publish(&self, sender: i32, pending: &Pending) {
        let channels = self.bus.channels.lock();
        for message in &pending.messages {
            let Some(listening) = channels.get(&message.channel) else { continue };
            let notification = Arc::new(Notification { sender, message: Message::clone(message) });
            for mailbox in listening {
                let mut waiting = mailbox.waiting.lock();
                waiting.bytes += message.bytes();
                waiting.queue.push_back(Arc::clone(&notification));
                drop(waiting);
                mailbox.arrived.notify_one();
            }
        }
    }
}

/// What one session listens to, and what has come. Dropping it ends the listening.
#[derive(Debug)]
pub struct Listener {
    bus: Arc<Bus>,
    channels: BTreeSet<String>,
    mailbox: Arc<Mailbox>,
}

impl Listener {
    /// LISTEN. A channel that is listened to already stays.
    pub fn listen(&mut self, channel: &str) {
        if self.channels.insert(channel.to_owned()) {
            self.bus.channels.lock().entry(channel.to_owned()).or_default().push(Arc::clone(&self.mailbox));
        }
    }

    /// UNLISTEN.
    pub fn unlisten(&mut self, channel: &str) {
        if self.channels.remove(channel) {
            self.leave(channel);
        }
    }

    /// UNLISTEN *.
    pub fn unlisten_all(&mut self) {
        for channel in std::mem::take(&mut self.channels) {
            self.leave(&channel);
        }
    }

    fn leave(&self, channel: &str) {
        let mut channels = self.bus.channels.lock();
        if let Some(listening) = channels.get_mut(channel) {
            listening.retain(|mailbox| !Arc::ptr_eq(mailbox, &self.mailbox));
            if listening.is_empty() {
                channels.remove(channel);
            }
        }
    }

    /// What is listened to, by name.
    pub fn channels(&self) -> impl Iterator<Item = &str> {
        self.channels.iter().map(String::as_str)
    }

    /// What has come since the last call.
    pub fn take(&self) -> Vec<Arc<Notification>> {
        let mut waiting = self.mailbox.waiting.lock();
        waiting.bytes = 0;
        waiting.queue.drain(..).collect()
    }

    /// Waits until something has come.
    pub async fn arrived(&self) {
        self.mailbox.arrived.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.unlisten_all();
    }
}

fn full() -> Error {
    Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many notifications in the NOTIFY queue")
        .detail("A session that listens does not read what it is sent, or a transaction notifies too much.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(texts: &[(&str, &str)]) -> Pending {
        let mut pending = Pending::default();
        for (channel, payload) in texts {
            pending.add(Message::new(channel, payload).unwrap(), usize::MAX).unwrap();
        }
        pending
    }

    #[tokio::test]
    async fn who_listens_is_told_in_order_and_once() {
        let bus = Bus::new(10_000);
        let (mut one, mut other) = (bus.listener(), bus.listener());
        one.listen("a");
        one.listen("a");
        other.listen("b");
        bus.turn().await.publish(7, &pending(&[("a", "1"), ("b", "2"), ("a", "1"), ("a", "3")]));
        let told = |listener: &Listener| listener.take().iter().map(|told| (told.sender, told.message.payload.clone())).collect::<Vec<_>>();
        one.arrived().await;
        assert_eq!(told(&one), [(7, "1".to_owned()), (7, "3".to_owned())]);
        assert_eq!(told(&other), [(7, "2".to_owned())]);
        other.unlisten("b");
        drop(one);
        assert!(bus.channels.lock().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_all_of_it() {
        let bus = Bus::new(2 * (OVERHEAD_BYTES + 2));
        let mut slow = bus.listener();
        slow.listen("a");
        let turn = bus.turn().await;
        turn.admit(&pending(&[("a", "1"), ("a", "2")])).unwrap();
        turn.publish(1, &pending(&[("a", "1"), ("a", "2")]));
        assert_eq!(turn.admit(&pending(&[("b", "1"), ("a", "3")])).unwrap_err().state(), SqlState::PROGRAM_LIMIT_EXCEEDED);
        turn.admit(&pending(&[("b", "1")])).unwrap();
        slow.take();
        turn.admit(&pending(&[("a", "3")])).unwrap();
    }

    #[test]
    fn limits_are_those_of_postgres() {
        assert!(Message::new("c", &"x".repeat(7_999)).is_ok());
        assert!(Message::new("c", &"x".repeat(8_000)).is_err());
        assert!(Message::new("", "").is_err());
        assert!(Message::new(&"c".repeat(63), "").is_ok());
        assert!(Message::new(&"c".repeat(64), "").is_err());
        let mut pending = pending(&[("a", "1"), ("a", "2")]);
        pending.truncate(1);
        assert_eq!(pending.len(), 1);
        assert!(pending.add(Message::new("a", "2").unwrap(), 100).is_err());
    }
}
