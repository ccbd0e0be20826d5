//! The questions a shop's analyst asks, for random stores, and how long their answers take.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::wire::Connection;
use super::super::{Error, Result};
use super::schema;

/// A question, and which way its answer has to come.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Under which name it is reported.
    pub name: &'static str,
    /// The query of a store; `$1` is its quoted name.
    text: fn() -> String,
    /// The first line of EXPLAIN (ROUTE).
    route: Option<&'static str>,
    /// Whether there is a row for each minute of the last hour.
    by_minute: bool,
}

/// Listing 9: orders and revenue of the last hour by minute, from the view by its name.
pub const DASHBOARD: Question = Question {
    name: "dashboard",
    text: || {
        format!(
            "SELECT w, sum(n) AS orders, sum(revenue) AS revenue FROM {}
             WHERE store_id = $1 AND w >= now() - INTERVAL '1' HOUR GROUP BY w ORDER BY w",
            schema::REVENUE
        )
    },
    route: None,
    by_minute: true,
};

/// The same asked of the table, on bounds of minutes: the planner finds the view.
pub const ROUTED: Question =
    Question { name: "dashboard_routed", text: || of_table("date_trunc('minute', now())"), route: Some("Route: view"), by_minute: true };

/// The last sixty minutes to the microsecond: whole minutes from the view, the edges from rows.
pub const MERGED: Question =
    Question { name: "dashboard_merged", text: || of_table("now()"), route: Some("Route: merged"), by_minute: true };

/// Listing 7: a day of a store's mobile traffic by category.
pub const SIMPLE: Question = Question {
    name: "ad_hoc_simple",
    text: || {
        "SELECT product_category, count(*) AS views, count(DISTINCT session_id) AS sessions,
                sum(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS purchases
         FROM bench_events WHERE store_id = $1 AND event_date = current_date AND device_type = 'mobile'
         GROUP BY product_category ORDER BY views DESC LIMIT 20"
            .to_owned()
    },
    route: Some("Route: scan"),
    by_minute: false,
};

/// Conversion and revenue of a week's sessions by channel, over all stores.
pub const COMPLEX: Question = Question {
    name: "ad_hoc_complex",
    text: || {
        "WITH visits AS (
             SELECT session_id, min(utm_source) AS channel, count(*) AS events, sum(revenue) AS revenue,
                    max(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS bought
             FROM bench_events WHERE event_time >= now() - INTERVAL '7 days' GROUP BY session_id)
         SELECT channel, count(*) AS sessions, avg(events) AS depth, sum(bought) AS orders, sum(revenue) AS revenue
         FROM visits WHERE $1 <> '' GROUP BY channel ORDER BY revenue DESC"
            .to_owned()
    },
    route: Some("Route: scan"),
    by_minute: false,
};

/// Listing 10: weekly retention of a store's customers.
pub const COHORTS: Question = Question {
    name: "cohort_analysis",
    text: || {
        "WITH cohorts AS (
             SELECT user_id, DATE_TRUNC('week', MIN(event_time)) AS cohort_week FROM bench_events
             WHERE event_type = 'purchase' AND store_id = $1 GROUP BY user_id),
         activity AS (
             SELECT e.user_id, c.cohort_week, DATE_TRUNC('week', e.event_time) AS activity_week
             FROM bench_events e JOIN cohorts c ON e.user_id = c.user_id
             WHERE e.event_type = 'purchase' AND e.store_id = $1)
         SELECT cohort_week, DATE_DIFF('week', cohort_week, activity_week) AS weeks_since_cohort, COUNT(DISTINCT user_id) AS active_users
         FROM activity GROUP BY cohort_week, weeks_since_cohort ORDER BY cohort_week, weeks_since_cohort"
            .to_owned()
    },
    route: None,
    by_minute: false,
};

fn of_table(until: &str) -> String {
    format!(
        "SELECT TUMBLE(event_time, INTERVAL '1' MINUTE) AS w, count(*) AS orders, sum(revenue) AS revenue FROM bench_events
         WHERE event_type = 'purchase' AND store_id = $1 AND event_time >= {until} - INTERVAL '1' HOUR GROUP BY 1 ORDER BY 1"
    )
}

impl Question {
    /// Asks `times` times as text, each time for one of the first `stores` stores. `minutes` has how many rows an answer by minute has.
    pub async fn as_text(&self, reader: &Connection, asking: Asking) -> Result<Vec<Duration>> {
        let text = (self.text)();
        self.expect_route(reader, &text).await?;
        let mut random = StdRng::seed_from_u64(asking.seed);
        let mut times = Vec::new();
        for _ in 0..asking.times {
            let text = text.replace("$1", &format!("'{}'", asking.store(&mut random)));
            let sent = Instant::now();
            let messages = reader.client.simple_query(&text).await?;
            times.push(sent.elapsed());
            let rows = messages.iter().filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))).count();
            self.expect_rows(rows, asking)?;
        }
        Ok(times)
    }

    /// The same as a prepared statement with the store as its parameter.
    pub async fn prepared(&self, reader: &Connection, asking: Asking) -> Result<Vec<Duration>> {
        let statement = reader.client.prepare(&(self.text)()).await?;
        let mut random = StdRng::seed_from_u64(asking.seed);
        let mut times = Vec::new();
        for _ in 0..asking.times {
            let store = asking.store(&mut random);
            let sent = Instant::now();
            let rows = reader.client.query(&statement, &[&store]).await?;
            times.push(sent.elapsed());
            self.expect_rows(rows.len(), asking)?;
        }
        Ok(times)
    }

    /// Asks EXPLAIN for it: what planning takes.
    pub async fn planned(&self, reader: &Connection, asking: Asking) -> Result<Vec<Duration>> {
        let text = format!("EXPLAIN {}", (self.text)());
        let mut random = StdRng::seed_from_u64(asking.seed);
        let mut times = Vec::new();
        for _ in 0..asking.times {
            let text = text.replace("$1", &format!("'{}'", asking.store(&mut random)));
            let sent = Instant::now();
            reader.client.simple_query(&text).await?;
            times.push(sent.elapsed());
        }
        Ok(times)
    }

    async fn expect_route(&self, reader: &Connection, text: &str) -> Result<()> {
        let Some(route) = self.route else { return Ok(()) };
        let text = text.replace("$1", "'store_1'");
        let found = reader.value(&format!("EXPLAIN (ROUTE) {text}")).await?.unwrap_or_default();
        if found.starts_with(route) { Ok(()) } else { Err(Error::Wrong(format!("{}: {found} where {route} was expected", self.name))) }
    }

    fn expect_rows(&self, rows: usize, asking: Asking) -> Result<()> {
        let Some(minutes) = asking.minutes.filter(|_| self.by_minute) else { return Ok(()) };
        if (minutes..=61).contains(&rows) {
            Ok(())
        } else {
            Err(Error::Wrong(format!("{}: {rows} minutes of the last hour's 60", self.name)))
        }
    }
}

/// How often and about whom.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Equal seeds ask about the same stores.
    pub seed: u64,
    /// Stores there are.
    pub stores: u64,
    /// How often.
    pub times: u64,
    /// The least rows of an answer by minute, where that is known.
    pub minutes: Option<usize>,
}

impl Asking {
    fn store(&self, random: &mut StdRng) -> String {
        format!("store_{}", random.random_range(1..=self.stores))
    }
}
