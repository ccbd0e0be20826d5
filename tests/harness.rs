//! Starts, kills and restarts the real server, and connects to it.

pub mod raw;

use std::fmt;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

/// How long a start may take, recovery included.
/// Whatever has to happen happens in this time on the slowest machine: it tells a failure, and no more.
pub const SOON: Duration = Duration::from_secs(180);

/// A server process on a directory of its own. Killed when dropped; when the test panics, its log is shown.
pub struct Server {
    dir: Arc<TempDir>,
    child: Child,
    /// Port of the PostgreSQL protocol.
    pub port: u16,
    /// Port of `/health` and `/metrics`.
    pub http: u16,
    options: Options,
}

/// What a server is started with.
#[derive(Clone, Default)]
pub struct Options {
    /// Give a fresh directory the commerce schema.
    pub template: bool,
    /// More `VERUS_*` variables.
    pub env: Vec<(&'static str, String)>,
}

impl Options {
    /// Limits so small that flushes, checkpoints, compaction and log truncation happen all the time.
    pub fn busy() -> Options {
        let env = [
            ("VERUS_LIMITS_STORE_FLUSH_ROWS", "400"),
            ("VERUS_LIMITS_STORE_FLUSH_AGE_MS", "150"),
            ("VERUS_LIMITS_STORE_CHECKPOINT_MS", "40"),
            ("VERUS_LIMITS_STORE_SETTLE_MS", "500"),
            ("VERUS_LIMITS_STORE_WHOLE_STATES_MS", "1"),
            ("VERUS_LIMITS_WAL_SEGMENT_BYTES_MAX", "65536"),
            ("VERUS_LIMITS_VIEW_BLOCK_ROWS_MAX", "64"),
            ("VERUS_LIMITS_COLUMNAR_PAGE_ROWS", "32"),
            ("VERUS_LIMITS_COLUMNAR_STEP_ROWS_MAX", "1000"),
            ("VERUS_LIMITS_COLUMNAR_SETTLE_MS", "200"),
        ];
        Options { template: false, env: env.map(|(key, value)| (key, value.to_owned())).to_vec() }
    }
}

impl Server {
    /// An empty server.
    pub async fn start() -> Server {
        Server::start_with(Options::default()).await
    }

    /// A server with options.
    pub async fn start_with(options: Options) -> Server {
        let dir = Arc::new(tempfile::tempdir().expect("temporary directory"));
        let (port, http) = (free_port(), free_port());
        let child = spawn(dir.path(), port, http, &options);
        let mut server = Server { dir, child, port, http, options };
        server.ready().await;
        server
    }

    /// Where its data is.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The process, for looking at its memory or sending signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A second process on the same directory and other ports: its exit status and what it said.
    pub fn rival(&self) -> (ExitStatus, String) {
        let output = command(self.dir.path(), free_port(), free_port(), &self.options).output().expect("the verus binary runs");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Waits until it answers a query.
    pub async fn ready(&mut self) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("child status") {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            if let Ok(session) = Session::open_with(&self.parameters()).await
                && session.client.simple_query("SELECT 1").await.is_ok()
            {
                return;
            }
            assert!(begin.elapsed() < SOON, "the server is not ready after {SOON:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL: no cleaning up.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("child status");
    }

    /// Starts the process again on the same directory and ports, without waiting for it.
    pub fn relaunch(&mut self) {
        self.child = spawn(self.dir.path(), self.port, self.http, &self.options);
    }

    /// Starts it again after its end and waits until it is ready.
    pub async fn restart(&mut self) {
        self.relaunch();
        self.ready().await;
    }

    /// Ends it cleanly and starts it again with a flush of whatever is hot; ready when all rows of the table are in files.
    pub async fn restart_from_files(&mut self, table: &str) {
        assert!(self.terminate(SOON).await.success());
        self.options.env.push(("VERUS_LIMITS_STORE_FLUSH_AGE_MS", "50".to_owned()));
        self.restart().await;
        let in_files = format!("(SELECT coalesce(sum(rows), 0) FROM verus.files WHERE table_name = '{table}')");
        self.connect().await.until(&format!("SELECT {in_files} = (SELECT count(*) FROM {table})")).await;
    }

    /// SIGTERM, and how it ended within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        // The shell's own kill: the program of that name is not installed everywhere.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.child.id())).status().expect("sh runs");
        assert!(sent.success());
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("child status") {
                return status;
            }
            assert!(begin.elapsed() < limit, "still running {limit:?} after SIGTERM:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The connection string of user verus, with the password where the server has one.
    fn parameters(&self) -> String {
        let password = self.options.env.iter().find(|(key, _)| *key == "VERUS_PASSWORD").map(|(_, password)| password.as_str());
        format!("{} password='{}'", parameters(self.port), password.unwrap_or("none"))
    }

    /// A new connection.
    pub async fn connect(&self) -> Session {
        match Session::open_with(&self.parameters()).await {
            Ok(session) => session,
            Err(error) => panic!("cannot connect: {error:?}\n{}", self.log()),
        }
    }

    /// An HTTP GET: status line and body.
    pub async fn get(&self, path: &str) -> (String, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await.expect("the HTTP port is open");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: verus\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the server's log ends with:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The server's command line, with none of this process's settings.
pub fn verus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verus"));
    command.args(arguments).stdin(Stdio::null());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("VERUS_") {
            command.env_remove(key);
        }
    }
    command
}

fn command(dir: &Path, port: u16, http: u16, options: &Options) -> Command {
    let mut command = verus(&["serve", "--listen", &format!("127.0.0.1:{port}"), "--http", &format!("127.0.0.1:{http}")]);
    command.arg("--data-dir").arg(dir.join("data")).current_dir(dir).envs(options.env.iter().map(|(key, value)| (key, value)));
    if !options.template {
        command.arg("--no-template");
    }
    command
}

fn spawn(dir: &Path, port: u16, http: u16, options: &Options) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("log file");
    command(dir, port, http, options).stdout(Stdio::null()).stderr(log).spawn().expect("the verus binary runs")
}

/// A port that is free and stays so: below the range from which the system takes ports for outgoing connections, and given out once.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    (0..PORTS)
        .map(|_| {
            FIRST_PORT
                + ((std::process::id().wrapping_mul(97).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed))) % u32::from(PORTS)) as u16
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Linux takes outgoing ports from 32768 on unless told otherwise.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 22_000;

fn parameters(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=verus dbname=verus connect_timeout=5")
}

/// An error of the server, with its SQLSTATE in front of the eyes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// The SQLSTATE, or `08006` when the connection broke.
    pub state: String,
    /// The message.
    pub message: String,
    /// The detail, or nothing.
    pub detail: String,
    /// The hint, or nothing.
    pub hint: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.state)
    }
}

impl std::error::Error for SqlError {}

impl From<&DbError> for SqlError {
    fn from(error: &DbError) -> Self {
        Self {
            state: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(report) => report.into(),
            None => Self { state: "08006".to_owned(), message: format!("{error:?}"), detail: String::new(), hint: String::new() },
        }
    }
}

/// Rows as text; NULL is `NULL`.
pub type Rows = Vec<Vec<String>>;

/// One connection.
pub struct Session {
    /// The driver's client.
    pub client: Client,
    notices: mpsc::UnboundedReceiver<DbError>,
    notifications: mpsc::UnboundedReceiver<(String, String)>,
}

impl Session {
    /// Connects as user and database `verus`.
    pub async fn open(port: u16) -> Result<Session, SqlError> {
        Session::open_with(&parameters(port)).await
    }

    /// Connects with a driver's connection string.
    pub async fn open_with(parameters: &str) -> Result<Session, SqlError> {
        let (client, mut connection) = tokio_postgres::connect(parameters, NoTls).await?;
        let (sender, notices) = mpsc::unbounded_channel();
        let (told, notifications) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = futures::stream::poll_fn(|context| connection.poll_message(context)).next().await {
                match message {
                    AsyncMessage::Notice(notice) => {
                        let _test_is_over = sender.send(notice);
                    }
                    AsyncMessage::Notification(told_to_us) => {
                        let _test_is_over = told.send((told_to_us.channel().to_owned(), told_to_us.payload().to_owned()));
                    }
                    _ => {}
                }
            }
        });
        Ok(Session { client, notices, notifications })
    }

    /// Runs statements; the rows of the last one that returned any.
    pub async fn query(&self, sql: &str) -> Result<Rows, SqlError> {
        let mut rows = Vec::new();
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect());
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// Like [`Session::query`] for statements that must succeed.
    pub async fn rows(&self, sql: &str) -> Rows {
        match self.query(sql).await {
            Ok(rows) => rows,
            Err(error) => panic!("{error}\n{}\n{}\nin: {sql}", error.detail, error.hint),
        }
    }

    /// The only value of the only row.
    pub async fn value(&self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        assert!(rows.len() == 1 && rows[0].len() == 1, "one value expected of {sql}: {rows:?}");
        rows[0][0].clone()
    }

    /// Waits until a condition is true, which it has to become.
    pub async fn until(&self, condition: &str) {
        let begin = Instant::now();
        while self.value(condition).await != "t" {
            assert!(begin.elapsed() < SOON, "it never came true: {condition}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The error of a statement that must fail.
    pub async fn failure(&self, sql: &str) -> SqlError {
        match self.query(sql).await {
            Ok(rows) => panic!("an error expected of {sql}: {rows:?}"),
            Err(error) => error,
        }
    }

    /// COPY FROM STDIN: the number of rows in the command tag.
    pub async fn copy(&self, sql: &str, data: &str) -> Result<u64, SqlError> {
        let sink = self.client.copy_in::<_, bytes::Bytes>(sql).await?;
        futures::pin_mut!(sink);
        for chunk in data.as_bytes().chunks(8192) {
            sink.send(bytes::Bytes::copy_from_slice(chunk)).await?;
        }
        Ok(sink.finish().await?)
    }

    /// COPY TO STDOUT.
    pub async fn copy_out(&self, sql: &str) -> Result<String, SqlError> {
        let stream = self.client.copy_out(sql).await?;
        futures::pin_mut!(stream);
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            text.extend_from_slice(&chunk?);
        }
        Ok(String::from_utf8(text).expect("UTF-8"))
    }

    /// The next notification (NOTIFY), channel and payload; none within `limit`.
    pub async fn notification(&mut self, limit: Duration) -> Option<(String, String)> {
        tokio::time::timeout(limit, self.notifications.recv()).await.ok().flatten()
    }

    /// The notices that came since the last call.
    pub async fn notices(&mut self) -> Vec<SqlError> {
        // A round trip, so that everything sent before has been read.
        self.rows("SELECT 1").await;
        let mut notices = Vec::new();
        while let Ok(notice) = self.notices.try_recv() {
            notices.push(SqlError::from(&notice));
        }
        notices
    }

    /// A view's rows equal its query's, as multisets. `what` is shown when they do not.
    pub async fn assert_view(&self, view: &str, query: &str, what: &str) {
        // The table itself must answer: the view would agree with itself.
        self.rows("SET verus.route = 'scan'").await;
        let mut expected = self.rows(query).await;
        let mut actual = self.rows(&format!("SELECT * FROM {view}")).await;
        expected.sort();
        actual.sort();
        if expected != actual {
            let missing: Vec<_> = expected.iter().filter(|row| !actual.contains(row)).take(5).collect();
            let extra: Vec<_> = actual.iter().filter(|row| !expected.contains(row)).take(5).collect();
            panic!(
                "{what}: view {view} differs from its query\n{query}\n{} rows expected, {} found\nonly in the query: {missing:?}\nonly in the view: {extra:?}",
                expected.len(),
                actual.len()
            );
        }
    }
}
