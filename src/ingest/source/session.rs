//! One attempt: connect, find out where to begin, then read until something changes or fails.
//!
//! *Invariants*: (1) where a partition begins is committed before its first message is; (2) what is asked for has room in
//! `limits.kafka.in_flight_bytes_max`; (3) when it returns, none of its tasks runs any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::Running;
use super::lane::Lane;
use super::reader::{Follow, Reader};
use crate::error::{Error, Result, SqlState};
use crate::kafka::api::{At, Topic};
use crate::kafka::{Address, Connection, KafkaError, Refusal, Settings};
use crate::store::Transaction;
use crate::store::progress::{Progress, Step};

/// Chunks that wait for a partition's lane.
const QUEUE_CHUNKS: usize = 2;

/// Why an attempt ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The topic has other partitions or leaders now.
    Changed,
}

/// Runs an attempt.
pub async fn run(running: &Arc<Running>) -> Result<Ended> {
    let settings = Arc::new(Settings {
        tls: running.options.tls.clone(),
        login: running.options.login.clone(),
        frame_bytes_max: running.parts.limits.kafka.frame_bytes_max,
    });
    let stop = running.stop.clone();
    let opened = async {
        let topic = find(running, &settings).await?;
        let leaders = leaders(running, &topic)?;
        running.status.partitions(
            leaders.iter().flat_map(|(address, partitions)| partitions.iter().map(move |partition| (*partition, address.to_string()))),
        );
        let mut connections = Vec::new();
        for (address, partitions) in leaders {
            connections.push((connect(&address, &settings).await?, partitions));
        }
        let offsets = begin(running, &mut connections).await?;
        Ok::<_, Error>((topic, connections, offsets))
    };
    let (topic, connections, offsets) = tokio::select! {
        () = stop.cancelled() => return Ok(Ended::Stopped),
        opened = opened => opened?,
    };
    read(running, &settings, topic, connections, &offsets).await
}

async fn connect(address: &Address, settings: &Settings) -> Result<Connection> {
    Ok(Connection::open(address, settings).await?)
}

/// The topic, from the first broker that answers.
async fn find(running: &Running, settings: &Settings) -> Result<Topic> {
    let mut failure = None;
    for address in &running.options.brokers {
        let asked = async {
            let mut connection = Connection::open(address, settings).await?;
            connection.topic(&running.options.topic).await
        };
        match asked.await {
            Ok(topic) => return Ok(topic),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or_else(|| Error::internal("a source without brokers"), Error::from))
}

/// The partitions that each broker leads.
fn leaders(running: &Running, topic: &Topic) -> Result<BTreeMap<Address, Vec<i32>>> {
    let name = &running.options.topic;
    let partitions_max = running.parts.limits.kafka.partitions_max;
    if topic.partitions.len() > partitions_max {
        running.parts.metrics.limit_hit("limits.kafka.partitions_max");
        let message = format!("topic \"{name}\" has {} partitions", topic.partitions.len());
        return Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message)
            .detail(format!("A source reads at most {partitions_max}."))
            .hint("Raise limits.kafka.partitions_max."));
    }
    let mut leaders: BTreeMap<Address, Vec<i32>> = BTreeMap::new();
    for partition in &topic.partitions {
        let address = partition.leader.and_then(|leader| topic.brokers.iter().find(|(broker, _)| *broker == leader));
        let Some((_, address)) = address else {
            let what = format!("partition {} of topic \"{name}\"", partition.index);
            return Err(KafkaError::Refused { what, refusal: Refusal::LEADER_NOT_AVAILABLE }.into());
        };
        leaders.entry(address.clone()).or_default().push(partition.index);
    }
    if leaders.is_empty() {
        return Err(KafkaError::Refused { what: format!("topic \"{name}\""), refusal: Refusal::UNKNOWN_TOPIC_OR_PARTITION }.into());
    }
    Ok(leaders)
}

/// The next offset of each partition. Those that were not read yet begin where the source says; partitions that a topic has got since
/// then at their first message.
async fn begin(running: &Running, connections: &mut [(Connection, Vec<i32>)]) -> Result<BTreeMap<i32, i64>> {
    let snapshot = running.parts.store.snapshot();
    let known = snapshot.sources.get(&running.source.oid).cloned().unwrap_or_default();
    let at = if known.is_empty() { running.options.start } else { At::Earliest };
    let mut offsets: BTreeMap<i32, i64> = known.iter().map(|(partition, position)| (*partition, position.offset)).collect();
    let mut steps = Vec::new();
    for (connection, partitions) in connections {
        let fresh: Vec<(i32, At)> = partitions.iter().filter(|partition| !known.contains_key(partition)).map(|one| (*one, at)).collect();
        if fresh.is_empty() {
            continue;
        }
        let mut found = connection.offsets(&running.options.topic, &fresh).await?;
        let late: Vec<(i32, At)> = found.iter().filter(|(_, offset)| offset.is_none()).map(|(one, _)| (*one, At::Latest)).collect();
        if !late.is_empty() {
            // No message is so late: what comes next is.
            found.retain(|(_, offset)| offset.is_some());
            found.extend(connection.offsets(&running.options.topic, &late).await?);
        }
        for (partition, _) in &fresh {
            let offset = found.iter().find(|(found, _)| found == partition).and_then(|(_, offset)| *offset);
            let to = offset.ok_or(KafkaError::Malformed("an offset is missing"))?;
            offsets.insert(*partition, to);
            steps.push(Step { partition: *partition, to, ..Step::default() });
        }
    }
    if !steps.is_empty() {
        let progress = Some(Progress { source: running.source.oid, steps });
        running.parts.store.commit(Transaction { progress, ..Transaction::default() }).await?;
    }
    Ok(offsets)
}

/// Reads until something ends.
async fn read(
    running: &Arc<Running>,
    settings: &Settings,
    topic: Topic,
    connections: Vec<(Connection, Vec<i32>)>,
    offsets: &BTreeMap<i32, i64>,
) -> Result<Ended> {
    // Ends the readers, which end the lanes.
    let over = running.stop.child_token();
    let mut tasks: FuturesUnordered<JoinHandle<Result<()>>> = FuturesUnordered::new();
    for (connection, partitions) in connections {
        let taken = Arc::new(Notify::new());
        let mut follows = Vec::new();
        for partition in partitions {
            let Some(offset) = offsets.get(&partition).copied() else { continue };
            let (sender, queue) = mpsc::channel(QUEUE_CHUNKS);
            let lane = Lane::new(Arc::clone(running), partition);
            tasks.push(running.parts.spawner.cpu(lane.run(queue, Arc::clone(&taken))));
            follows.push(Follow { partition, offset, sender, behind: None });
        }
        let reader = Reader { running: Arc::clone(running), connection, follows, taken, over: over.clone() };
        tasks.push(running.parts.spawner.io(reader.run()));
    }
    let ended = watch(running, settings, &topic, &mut tasks).await;
    over.cancel();
    let mut failure = None;
    while let Some(done) = tasks.next().await {
        if let Err(error) = outcome(done) {
            failure.get_or_insert(error);
        }
    }
    match (ended, failure) {
        (Err(error), _) | (Ok(_), Some(error)) if !running.stop.is_cancelled() => Err(error),
        (ended, _) => Ok(ended.unwrap_or(Ended::Stopped)),
    }
}

fn outcome(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|_| Error::internal("a task of a source panicked"))?
}

/// Waits for the first task that ends, a change of the topic, or the word to stop.
async fn watch(
    running: &Running,
    settings: &Settings,
    topic: &Topic,
    tasks: &mut FuturesUnordered<JoinHandle<Result<()>>>,
) -> Result<Ended> {
    let every = Duration::from_millis(running.parts.limits.kafka.refresh_ms);
    loop {
        tokio::select! {
            () = running.stop.cancelled() => return Ok(Ended::Stopped),
            done = tasks.next() => {
                done.map_or(Ok(()), outcome)?;
            }
            now = look(running, settings, every) => match now {
                // A broker that does not answer this is found out by those who read.
                Some(now) if now.partitions != topic.partitions => return Ok(Ended::Changed),
                _ => {}
            },
        }
        if tasks.is_empty() {
            return Ok(Ended::Changed);
        }
    }
}

async fn look(running: &Running, settings: &Settings, every: Duration) -> Option<Topic> {
    tokio::time::sleep(every).await;
    find(running, settings).await.ok()
}
