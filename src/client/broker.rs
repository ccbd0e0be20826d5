//! A Kafka broker in memory, with as much of the protocol as `kafka` speaks: for measurements and tests without another program.
//!
//! *Place*: `verus bench kafka` reads from one where no other broker is named; the integration tests start, stop and change them.
//!
//! *Invariants*: (1) offsets and batches are as a producer with its transactions wrote them; (2) nothing is created by asking for it. Nothing
//! here is bounded or durable: it is not for production.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kafka::api::Api;
use crate::kafka::batch::{self, Written};
use crate::kafka::codec::Codec;
use crate::kafka::wire::{Reader, Writer};
use crate::task::Spawner;

/// The only broker of its cluster.
const NODE: i32 = 1;

const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC: i16 = 3;
const AUTHENTICATION_FAILED: i16 = 58;
const UNSUPPORTED_MECHANISM: i16 = 33;

/// A batch in a log.
#[derive(Clone, Debug)]
struct Stored {
    base: i64,
    last: i64,
    bytes: Bytes,
}

/// One partition.
#[derive(Clone, Debug, Default)]
struct Log {
    batches: Vec<Stored>,
    start: i64,
    end: i64,
    /// Producer and first offset of transactions that are open.
    open: Vec<(i64, i64)>,
    /// Producer, first offset and marker of those that were given up.
    aborted: Vec<(i64, i64, i64)>,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<String, Vec<Log>>,
    /// User and password, where a login is wanted.
    user: Option<(String, String)>,
    /// An offset behind the end is answered like the end.
    lenient: bool,
}

/// What the broker holds; it outlives the broker's stops.
#[derive(Debug)]
pub struct Cluster {
    state: Mutex<State>,
    grown: watch::Sender<u64>,
}

/// A broker that serves a cluster until it is stopped or dropped.
#[derive(Debug)]
pub struct Broker {
    /// Where it listens.
    pub address: SocketAddr,
    stop: CancellationToken,
}

impl Cluster {
    /// Without topics.
    pub fn new() -> Arc<Cluster> {
        Arc::new(Cluster { state: Mutex::default(), grown: watch::channel(0).0 })
    }

    /// Wants a login by SASL PLAIN from now on.
    pub fn require(&self, user: &str, password: &str) {
        self.state.lock().user = Some((user.to_owned(), password.to_owned()));
    }

    /// Answers offsets behind a partition's end without an error from now on, as some brokers do.
    pub fn be_lenient(&self) {
        self.state.lock().lenient = true;
    }

    /// Makes a topic, or gives it more partitions.
    pub fn create(&self, topic: &str, partitions: usize) {
        self.state.lock().topics.entry(topic.to_owned()).or_default().resize_with(partitions, Log::default);
    }

    /// Removes a topic with its messages.
    pub fn remove(&self, topic: &str) {
        self.state.lock().topics.remove(topic);
    }

    /// Appends messages in one batch; the offset after them. None is a tombstone.
    pub fn append(&self, topic: &str, partition: usize, codec: Codec, values: &[Option<&[u8]>]) -> std::io::Result<i64> {
        self.write(topic, partition, codec, None, values)
    }

    /// Appends messages of a producer's transaction, which is not committed yet.
    pub fn append_in_transaction(&self, topic: &str, partition: usize, producer: i64, values: &[Option<&[u8]>]) -> std::io::Result<i64> {
        self.write(topic, partition, Codec::None, Some(producer), values)
    }

    fn write(
        &self,
        topic: &str,
        partition: usize,
        codec: Codec,
        transaction: Option<i64>,
        values: &[Option<&[u8]>],
    ) -> std::io::Result<i64> {
        let messages: Vec<_> = values.iter().map(|value| (None, *value)).collect();
        self.put(topic, partition, |log| {
            let written = Written { base_offset: log.end, timestamp_ms: log.end, codec, transaction, messages: &messages };
            let bytes = Bytes::from(batch::encode(&written)?);
            let (base, last) = (log.end, log.end + messages.len() as i64 - 1);
            if let Some(producer) = transaction
                && !log.open.iter().any(|(open, _)| *open == producer)
            {
                log.open.push((producer, base));
            }
            Ok(Stored { base, last, bytes })
        })
    }

    /// Ends a producer's transaction.
    pub fn end(&self, topic: &str, partition: usize, producer: i64, commit: bool) -> std::io::Result<i64> {
        self.put(topic, partition, |log| {
            let begun = log.open.iter().position(|(open, _)| *open == producer).map(|index| log.open.remove(index));
            if let (false, Some((producer, first))) = (commit, begun) {
                log.aborted.push((producer, first, log.end));
            }
            let bytes = Bytes::from(batch::encode_marker(log.end, producer, commit));
            Ok(Stored { base: log.end, last: log.end, bytes })
        })
    }

    fn put(&self, topic: &str, partition: usize, make: impl FnOnce(&mut Log) -> std::io::Result<Stored>) -> std::io::Result<i64> {
        let mut state = self.state.lock();
        let log = state.topics.get_mut(topic).and_then(|logs| logs.get_mut(partition));
        let log = log.ok_or_else(|| std::io::Error::other("no such partition"))?;
        let stored = make(log)?;
        log.end = stored.last + 1;
        log.batches.push(stored);
        let end = log.end;
        drop(state);
        self.grown.send_modify(|count| *count += 1);
        Ok(end)
    }

    /// Changes a byte of the newest batch.
    pub fn damage(&self, topic: &str, partition: usize) {
        let mut state = self.state.lock();
        let batch = state.topics.get_mut(topic).and_then(|logs| logs.get_mut(partition)?.batches.last_mut());
        if let Some(batch) = batch {
            let mut bytes = batch.bytes.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            batch.bytes = bytes.into();
        }
    }

    /// Forgets the batches that end before an offset, as retention does.
    pub fn forget_before(&self, topic: &str, partition: usize, offset: i64) {
        if let Some(log) = self.state.lock().topics.get_mut(topic).and_then(|logs| logs.get_mut(partition)) {
            log.batches.retain(|batch| batch.last >= offset);
            log.start = offset;
        }
    }

    /// Serves it on a loopback port, 0 for any.
    pub async fn serve(self: &Arc<Self>, port: u16, spawner: &Spawner) -> std::io::Result<Broker> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let (cluster, own, stopped) = (Arc::clone(self), spawner.clone(), stop.clone());
        spawner.io(async move {
            loop {
                let socket = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((socket, _)) => socket,
                        Err(_) => continue,
                    },
                };
                let (cluster, stopped) = (Arc::clone(&cluster), stopped.clone());
                own.io(async move {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        // A client that has gone is no error.
                        _ = converse(&cluster, socket, address) => {}
                    }
                });
            }
        });
        Ok(Broker { address, stop })
    }
}

impl Broker {
    /// Closes the port and every connection.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a connection has come to.
struct Peer {
    address: SocketAddr,
    may: bool,
}

async fn converse(cluster: &Cluster, mut socket: TcpStream, address: SocketAddr) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut peer = Peer { address, may: cluster.state.lock().user.is_none() };
    loop {
        let length = usize::try_from(socket.read_i32().await?).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Ok(());
        }
        let mut request = vec![0; length];
        socket.read_exact(&mut request).await?;
        let malformed = |_| std::io::Error::other("malformed");
        let mut reader = Reader::new(&request);
        let (api, version) = (reader.i16().map_err(malformed)?, reader.i16().map_err(malformed)?);
        let correlation = reader.i32().map_err(malformed)?;
        reader.nullable().map_err(malformed)?;
        let answer = answer(cluster, &mut peer, api, version, reader).await.map_err(malformed)?;
        let Some(body) = answer else { return Ok(()) };
        let mut head = Writer::default();
        head.count(4 + body.0.len()).i32(correlation);
        socket.write_all(&head.0).await?;
        socket.write_all(&body.0).await?;
    }
}

const SPOKEN: [Api; 6] = [Api::Fetch, Api::ListOffsets, Api::Metadata, Api::SaslHandshake, Api::ApiVersions, Api::SaslAuthenticate];

/// None closes the connection.
async fn answer(
    cluster: &Cluster,
    peer: &mut Peer,
    api: i16,
    version: i16,
    mut reader: Reader<'_>,
) -> crate::kafka::Result<Option<Writer>> {
    let known = SPOKEN.into_iter().find(|known| *known as i16 == api);
    let mut out = Writer::default();
    match known {
        Some(Api::ApiVersions) => {
            out.i16(0).count(SPOKEN.len());
            for api in SPOKEN {
                let (_, least, greatest) = api.spoken();
                out.i16(api as i16).i16(least).i16(greatest);
            }
        }
        Some(Api::SaslHandshake) => {
            let code = if reader.string()? == "PLAIN" { 0 } else { UNSUPPORTED_MECHANISM };
            out.i16(code).count(1).string("PLAIN");
        }
        Some(Api::SaslAuthenticate) => {
            let token = reader.bytes()?;
            let user = cluster.state.lock().user.clone();
            peer.may = user.is_none_or(|(user, password)| token == format!("\0{user}\0{password}").as_bytes());
            let (code, message) = if peer.may { (0, None) } else { (AUTHENTICATION_FAILED, Some("Authentication failed")) };
            out.i16(code).nullable(message).bytes(b"");
        }
        _ if !peer.may => return Ok(None),
        Some(Api::Metadata) => metadata(cluster, peer, &mut reader, &mut out)?,
        Some(Api::ListOffsets) => offsets(cluster, &mut reader, &mut out)?,
        Some(Api::Fetch) => fetch(cluster, version, &mut reader, &mut out).await?,
        Some(Api::Produce) | None => return Ok(None),
    }
    Ok(Some(out))
}

fn metadata(cluster: &Cluster, peer: &Peer, reader: &mut Reader<'_>, out: &mut Writer) -> crate::kafka::Result<()> {
    let topics = reader.each(|reader| reader.string())?;
    let state = cluster.state.lock();
    out.i32(0).count(1).i32(NODE).string(&peer.address.ip().to_string()).i32(peer.address.port().into()).nullable(None);
    out.nullable(Some("memory")).i32(NODE).count(topics.len());
    for name in topics {
        let logs = state.topics.get(name);
        out.i16(if logs.is_some() { 0 } else { UNKNOWN_TOPIC }).string(name).i8(0).count(logs.map_or(0, Vec::len));
        for index in 0..logs.map_or(0, Vec::len) {
            out.i16(0).count(index).i32(NODE).count(1).i32(NODE).count(1).i32(NODE);
        }
    }
    Ok(())
}

fn offsets(cluster: &Cluster, reader: &mut Reader<'_>, out: &mut Writer) -> crate::kafka::Result<()> {
    reader.i32()?;
    reader.i8()?;
    let asked = reader.each(|reader| Ok((reader.string()?, reader.each(|reader| Ok((reader.i32()?, reader.i64()?)))?)))?;
    let state = cluster.state.lock();
    out.i32(0).count(asked.len());
    for (topic, partitions) in asked {
        out.string(topic).count(partitions.len());
        for (partition, time) in partitions {
            let log = log(&state, topic, partition);
            let offset = match (log, time) {
                (None, _) => -1,
                (Some(log), -2) => log.start,
                (Some(log), -1) => stable(log),
                // A message's timestamp is its batch's first offset here.
                (Some(log), time) => log.batches.iter().find(|batch| batch.base >= time).map_or(-1, |batch| batch.base),
            };
            out.i32(partition).i16(if log.is_some() { 0 } else { UNKNOWN_TOPIC }).i64(-1).i64(offset);
        }
    }
    Ok(())
}

fn log<'a>(state: &'a State, topic: &str, partition: i32) -> Option<&'a Log> {
    state.topics.get(topic)?.get(usize::try_from(partition).ok()?)
}

/// One past the last offset before every open transaction.
fn stable(log: &Log) -> i64 {
    log.open.iter().map(|(_, first)| *first).min().unwrap_or(log.end)
}

async fn fetch(cluster: &Cluster, version: i16, reader: &mut Reader<'_>, out: &mut Writer) -> crate::kafka::Result<()> {
    reader.i32()?;
    let wait = Duration::from_millis(reader.i32()?.unsigned_abs().into());
    reader.i32()?;
    let bytes_max = usize::try_from(reader.i32()?).unwrap_or(0);
    reader.i8()?;
    if version >= 7 {
        reader.i64()?;
    }
    let asked = reader.each(|reader| {
        let topic = reader.string()?;
        let partitions = reader.each(|reader| {
            let partition = reader.i32()?;
            if version >= 9 {
                reader.i32()?;
            }
            let offset = reader.i64()?;
            if version >= 5 {
                reader.i64()?;
            }
            Ok((partition, offset, usize::try_from(reader.i32()?).unwrap_or(0)))
        })?;
        Ok((topic, partitions))
    })?;
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let mut grown = cluster.grown.subscribe();
        let mut body = Writer::default();
        let found = answer_fetch(&cluster.state.lock(), version, &asked, bytes_max, &mut body);
        let is_late = tokio::time::timeout_at(deadline, async {
            if !found {
                // The cluster is there as long as its broker is.
                let _ = grown.changed().await;
            }
        });
        if is_late.await.is_err() || found {
            out.raw(&body.0);
            return Ok(());
        }
    }
}

/// Topic, then partition, offset and greatest length.
type Asked<'a> = [(&'a str, Vec<(i32, i64, usize)>)];

/// Whether there was anything to say.
fn answer_fetch(state: &State, version: i16, asked: &Asked<'_>, mut bytes_left: usize, out: &mut Writer) -> bool {
    let mut found = false;
    out.i32(0);
    if version >= 7 {
        out.i16(0).i32(0);
    }
    out.count(asked.len());
    for (topic, partitions) in asked {
        out.string(topic).count(partitions.len());
        for (partition, offset, bytes_max) in partitions {
            let log = log(state, topic, *partition);
            let code = match log {
                None => UNKNOWN_TOPIC,
                Some(log) if *offset < log.start || (*offset > log.end && !state.lenient) => OFFSET_OUT_OF_RANGE,
                Some(_) => 0,
            };
            let none = Log::default();
            let log = log.unwrap_or(&none);
            out.i32(*partition).i16(code).i64(log.end).i64(stable(log));
            if version >= 5 {
                out.i64(log.start);
            }
            let aborted: Vec<_> = log.aborted.iter().filter(|(_, _, marker)| marker >= offset).collect();
            out.count(aborted.len());
            for (producer, first, _) in aborted {
                out.i64(*producer).i64(*first);
            }
            let mut records = Vec::new();
            let from = log.batches.partition_point(|batch| batch.last < *offset);
            for batch in log.batches[from..].iter().take_while(|batch| code == 0 && batch.last < stable(log)) {
                let fits = records.len() + batch.bytes.len() <= *bytes_max && batch.bytes.len() <= bytes_left;
                // The first batch of an answer comes whatever its length.
                if !fits && (found || !records.is_empty()) {
                    break;
                }
                bytes_left = bytes_left.saturating_sub(batch.bytes.len());
                records.extend_from_slice(&batch.bytes);
            }
            found |= code != 0 || !records.is_empty();
            out.bytes(&records);
        }
    }
    found
}
