//! Connections to a server.
//!
//! *Place*: used by `bench`, `demo` and `import`.

use bytes::Bytes;
use futures::{SinkExt, pin_mut};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, Statement};

use super::{Error, Result};
use crate::task::Spawner;

/// Bytes of COPY data in a message.
const COPY_MESSAGE_BYTES: usize = 128 * 1024;

/// Where a server listens and who wants in.
#[derive(Clone, Debug)]
pub struct Address {
    /// Name or IP address.
    pub host: String,
    /// Port of the PostgreSQL protocol.
    pub port: u16,
    /// Password of user `verus`, if the server asks for one.
    pub password: Option<String>,
}

/// One connection as user `verus`. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    /// The driver's client.
    pub client: Client,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Connects; the protocol runs on `spawner`'s io runtime.
    pub async fn open(address: &Address, application: &str, spawner: &Spawner) -> Result<Connection> {
        let mut config = tokio_postgres::Config::new();
        config.host(&address.host).port(address.port).user("verus").dbname("verus").application_name(application);
        config.connect_timeout(std::time::Duration::from_secs(5));
        if let Some(password) = &address.password {
            config.password(password);
        }
        let failed = |source| Error::Connect { address: format!("{}:{}", address.host, address.port), source };
        let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
        // Its error reaches whoever waits for an answer.
        let driver = spawner.io(async move { drop(connection.await) });
        Ok(Connection { client, driver })
    }

    /// Runs one or more statements.
    pub async fn run(&self, sql: &str) -> Result<()> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// The first column of the first row as text; None where it is NULL or there is no row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            })
            .flatten())
    }

    /// The same as a number; NULL and no row are 0.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        let Some(text) = self.value(sql).await? else { return Ok(0) };
        text.parse().map_err(|_| Error::Wrong(format!("a whole number was expected, not {text:?}, of: {sql}")))
    }

    /// One COPY of `data`, until it is acknowledged: the rows that were accepted.
    pub async fn copy(&self, statement: &Statement, data: Bytes) -> Result<u64> {
        self.copy_all(statement, std::iter::once(data)).await
    }

    /// One COPY of several pieces.
    pub async fn copy_all(&self, statement: &Statement, pieces: impl Iterator<Item = Bytes>) -> Result<u64> {
        let sink = self.client.copy_in::<_, Bytes>(statement).await?;
        pin_mut!(sink);
        for data in pieces {
            let mut from = 0;
            while from < data.len() {
                let to = (from + COPY_MESSAGE_BYTES).min(data.len());
                sink.feed(data.slice(from..to)).await?;
                from = to;
            }
        }
        Ok(sink.finish().await?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
