//! FUNNEL at sizes: the same answer in memory, after a kill and from files; and what its errors point at.

use crate::harness::{Server, Session};

const CREATE: &str =
    "CREATE TABLE e (session_id text, at timestamptz NOT NULL, kind integer, device text, WATERMARK FOR at AS at - INTERVAL '1 hour')";

/// Sessions of four events each, of which some skip a step.
const FILL: &str = "INSERT INTO e SELECT 'a session with a name as long as an uuid ' || i % 50000, TIMESTAMPTZ '2024-05-01 00:00:00+00' + i * INTERVAL '1 millisecond',
     CASE WHEN i % 7 = 3 THEN 9 ELSE i / 50000 END, 'device ' || i % 3 FROM generate_series(0, 199999) AS g(i)";

const FUNNEL: &str = "SELECT device, step, entities, median_seconds FROM FUNNEL(e, steps := [kind = 0, kind = 1, kind = 2, kind = 3], \
     window := INTERVAL '1 minute', group_by := [device]) ORDER BY 1, 2";

/// The same in plain SQL, for this data: each session has one event of each kind at most, in order.
const PLAIN: &str = "WITH s AS (SELECT session_id, min(device) AS device, bool_or(kind = 0) AS a, bool_or(kind = 1) AS b, bool_or(kind = 2) AS c, \
     bool_or(kind = 3) AS d FROM e GROUP BY session_id) \
     SELECT 'x', count(*) FILTER (WHERE a), count(*) FILTER (WHERE a AND b), count(*) FILTER (WHERE a AND b AND c), \
     count(*) FILTER (WHERE a AND b AND c AND d) FROM s";

async fn total(session: &Session) -> Vec<String> {
    let wide = "SELECT 'x', sum(step_1), sum(step_2), sum(step_3), sum(step_4) FROM FUNNEL(e, \
         steps := [kind = 0, kind = 1, kind = 2, kind = 3], group_by := [device], format := 'wide')";
    session.rows(wide).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn funnels_are_the_same_wherever_the_events_are() {
    let mut server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    session.rows(FILL).await;
    let found = session.rows(FUNNEL).await;
    assert_eq!(found.len(), 12);
    assert_eq!(total(&session).await, session.rows(PLAIN).await.remove(0));
    server.kill();
    server.restart().await;
    let session = server.connect().await;
    assert_eq!(session.rows(FUNNEL).await, found, "after a kill");
    server.restart_from_files("e").await;
    let session = server.connect().await;
    assert_eq!(session.rows(FUNNEL).await, found, "from files");
    let plan = session.rows(&format!("EXPLAIN {}", FUNNEL.replace(", group_by := [device]", "").replace("device, step", "1, step"))).await;
    let plan: String = plan.into_iter().flatten().map(|line| line + "\n").collect();
    assert!(!plan.contains("device"), "columns are pruned:\n{plan}");
    let scan = plan.lines().find(|line| line.contains("file_type=parquet")).unwrap_or_default();
    assert!(scan.contains("predicate=") && scan.contains("kind"), "the steps reach the scan:\n{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_point_at_the_argument() {
    let server = Server::start().await;
    let session = server.connect().await;
    session.rows(CREATE).await;
    let position = |text: &str, part: &str| u32::try_from(text.find(part).unwrap() + 1).unwrap();
    for (text, part, state, message) in [
        ("SELECT * FROM FUNNEL(e, steps := [kind = 0], windo := '1 hour')", "windo", "42883", "there is no argument \"windo\" of FUNNEL"),
        (
            "SELECT * FROM FUNNEL(e, steps := [kind = 0], mode := 'loose')",
            "mode",
            "22023",
            "argument \"mode\" of FUNNEL cannot be \"loose\"",
        ),
        ("SELECT * FROM FUNNEL(e, steps := [kind = 0, nope = 1])", "nope", "42703", "column \"nope\" does not exist"),
        (
            "SELECT * FROM FUNNEL(e, steps := [kind])",
            "steps",
            "42804",
            "argument \"steps\" of FUNNEL must be type boolean, not type integer",
        ),
        (
            "SELECT * FROM FUNNEL(e, steps := [kind = 0], window := '-1 s')",
            "window",
            "22023",
            "argument \"window\" of FUNNEL must be a positive interval",
        ),
    ] {
        let error = session.client.simple_query(text).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!((error.code().code(), error.message()), (state, message), "{text}");
        let expected = tokio_postgres::error::ErrorPosition::Original(position(text, part));
        assert_eq!(error.position(), Some(&expected), "{text}");
    }
    let unknown = session.failure("SELECT * FROM FUNNEL(e, steps := [kind = 0], windo := '1 hour')").await;
    assert!(unknown.hint.contains("Perhaps you mean \"window\"") && unknown.hint.contains("having_same"), "{}", unknown.hint);
}
